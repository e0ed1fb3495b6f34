// machines: aarch64 arm64
// flags: -march=armv8.2-a+dotprod
// flags: -fno-tree-slp-vectorize -fno-schedule-insns
//
// The kernels use vectors explicitly. GCC's SLP vectorizer would also pair up scalars, such as the
// addresses of three codes; they would go through memory, which costs more than it saves. Before it
// chooses registers, GCC would move the products of one row apart, and copy some scores.
//
// This file is the int8 filter for 64-bit Arm with dot products of bytes (sdot): 32 registers hold
// 6 rows x 4 registers of codes (24 accumulators), the codes, and the words of the rows.
#include "../int8_filter/filter_kernel.h"
#include "neon_probe.h"
#include "neon_simd.h"

namespace vqvae_fast {
namespace {

struct NeonDot {
  using Simd = NeonFilter;
  static constexpr int kTileRows = 6, kPanelCodes = 16, kGroupCodes = 2 * kPanelCodes;
  static constexpr int kCodeOffset = 0;  // sdot takes signed bytes
  static constexpr int kLargestRow = kLargestNarrow;
  static constexpr int64_t kSmallestDim = 8, kFewestElements = 1 << 14;

  // tile: [words][kTileRows].
  static void pack_rows(int32_t* tile, Int8Words, int64_t w, int64_t, Simd::Ints rows) {
    static_assert(kTileRows == 6 && Simd::kWidth >= kTileRows, "a vector has a word of all rows");
    int32_t* words = tile + w * kTileRows;
    vst1q_s32(words, rows.low);
    vst1_s32(words + 4, vget_low_s32(rows.high));
  }

  // group: [panels][words][kPanelCodes]. Of a wide word, four codes' first elements come before
  // their second ones, because an instruction multiplies the elements of half a register.
  static void pack_codes(int32_t* group, Int8Words words, int64_t w, int64_t first,
                         Simd::Ints codes) {
    if (w < words.wide) codes = {elements_apart(codes.low), elements_apart(codes.high)};
    const int64_t panel = first / kPanelCodes;
    Simd::store_ints(group + (panel * words.all + w) * kPanelCodes + first % kPanelCodes, codes);
  }

  // Scores the rows of a block against one group: a panel stays in the L1 for all tiles.
  VQVAE_FAST_INLINE static void score_group(const int32_t* tiles, int64_t num_rows,
                                            const float* ratio, const int32_t* group,
                                            const float* half_norm, Int8Words words,
                                            int32_t* best) {
    constexpr int kMostLeft = 4;  // from here on a whole tile takes about as long
    int64_t whole = num_rows / kTileRows;
    const int64_t rest = num_rows - whole * kTileRows;
    if (rest > kMostLeft) ++whole;
    if (whole > 0) score_tiles(tiles, whole, ratio, group, half_norm, words, best);
    if (rest == 0 || rest > kMostLeft) return;
    const auto score_rest = rest == 1   ? score_rows<1>
                            : rest == 2 ? score_rows<2>
                                        : score_rows<kMostLeft>;
    score_rest(tiles + whole * kTileRows * words.all, ratio[whole], group, half_norm, words,
               best + whole * kTileRows * Simd::kWidth);
  }

  // Scores row r of a tile against one group, and writes the scores of all its codes.
  VQVAE_FAST_ALONE static void score_row(const int32_t* tile, int64_t r, float ratio,
                                         const int32_t* group, const float* half_norm,
                                         Int8Words words, int32_t* scores) {
    for (int64_t panel = 0; panel < kGroupCodes / kPanelCodes; ++panel) {
      Scores<1> of_row;
      score(of_row, tile + r, group + panel * words.all * kPanelCodes,
            half_norm + panel * kPanelCodes, ratio, words);
      VQVAE_FAST_UNROLL
      for (int j = 0; j < kVectors; ++j) {
        vst1q_s32(scores + panel * kPanelCodes + 4 * j, of_row.at[0][j]);
      }
    }
  }

 private:
  static constexpr int kVectors = kPanelCodes / 4;  // of four codes, in a panel

  template <int kRows>
  struct Scores {
    int32x4_t at[kRows][kVectors];
  };

  // RowWords holds one word of each row of a tile.
  struct RowWords {
    int32x4_t first;
    int32x2_t last;
  };

  static int32x4_t elements_apart(int32x4_t words) {
    return vreinterpretq_s32_s16(vshrn_high_n_s32(vmovn_s32(words), words, 16));
  }

  template <int kRows>
  VQVAE_FAST_INLINE static RowWords load_rows(const int32_t* words) {
    if constexpr (kRows == 1) return {vld1q_dup_s32(words), int32x2_t{}};
    if constexpr (kRows == 2) return {vcombine_s32(vld1_s32(words), int32x2_t{}), int32x2_t{}};
    if constexpr (kRows == 4) return {vld1q_s32(words), int32x2_t{}};
    if constexpr (kRows == 6) return {vld1q_s32(words), vld1_s32(words + 4)};
  }

  // Adds the products of one word of row kRow, and of those behind it, and of all codes.
  template <int kRow, int kRows>
  VQVAE_FAST_INLINE static void add_narrow(Scores<kRows>& scores, RowWords rows,
                                           const int32x4_t (&codes)[kVectors]) {
    if constexpr (kRow < kRows) {
      VQVAE_FAST_UNROLL
      for (int j = 0; j < kVectors; ++j) {
        const int8x16_t bytes = vreinterpretq_s8_s32(codes[j]);
        int32x4_t& score = scores.at[kRow][j];
        if constexpr (kRow < 4) {
          score = vdotq_laneq_s32(score, bytes, vreinterpretq_s8_s32(rows.first), kRow % 4);
        } else {
          score = vdotq_lane_s32(score, bytes, vreinterpret_s8_s32(rows.last), kRow % 2);
        }
      }
      add_narrow<kRow + 1>(scores, rows, codes);
    }
  }

  // Does the same for words of two elements.
  template <int kRow, int kRows>
  VQVAE_FAST_INLINE static void add_wide(Scores<kRows>& scores, RowWords rows,
                                         const int32x4_t (&codes)[kVectors]) {
    if constexpr (kRow < kRows) {
      const int16x4_t row = vreinterpret_s16_s32(kRow < 2   ? vget_low_s32(rows.first)
                                                 : kRow < 4 ? vget_high_s32(rows.first)
                                                            : rows.last);
      constexpr int kFirst = kRow % 2 * 2;
      VQVAE_FAST_UNROLL
      for (int j = 0; j < kVectors; ++j) {
        const int16x8_t elements = vreinterpretq_s16_s32(codes[j]);
        int32x4_t& score = scores.at[kRow][j];
        score = vmlal_lane_s16(score, vget_low_s16(elements), row, kFirst);
        score = vmlal_high_lane_s16(score, elements, row, kFirst + 1);
      }
      add_wide<kRow + 1>(scores, rows, codes);
    }
  }

  VQVAE_FAST_INLINE static void load_codes(const int32_t*& panel, int32x4_t (&codes)[kVectors]) {
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kVectors; ++j) codes[j] = vld1q_s32(panel + 4 * j);
    panel += kPanelCodes;
  }

  // Scores the first kRows rows from `rows` on against one panel.
  template <int kRows>
  VQVAE_FAST_INLINE static void score(Scores<kRows>& scores, const int32_t* rows,
                                      const int32_t* panel, const float* half_norm, float ratio,
                                      Int8Words words) {
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kVectors; ++j) {
      const int32x4_t start = Simd::start_of(half_norm + 4 * j, ratio);
      VQVAE_FAST_UNROLL
      for (int i = 0; i < kRows; ++i) scores.at[i][j] = start;
    }
    int32x4_t codes[kVectors];
    for (int64_t w = 0; w < words.wide; ++w, rows += kTileRows) {
      load_codes(panel, codes);
      add_wide<0>(scores, load_rows<kRows>(rows), codes);
    }
    for (int64_t w = words.wide; w < words.all; ++w, rows += kTileRows) {
      load_codes(panel, codes);
      add_narrow<0>(scores, load_rows<kRows>(rows), codes);
    }
  }

  // Scores the first kRows rows of a tile against one panel; keeps the best of each lane in
  // best[row * kWidth].
  template <int kRows, bool kFirstPanel>
  VQVAE_FAST_INLINE static void score_panel(const int32_t* rows, const int32_t* panel,
                                            const float* half_norm, float ratio, Int8Words words,
                                            int32_t* best) {
    Scores<kRows> scores;
    score(scores, rows, panel, half_norm, ratio, words);
    VQVAE_FAST_UNROLL
    for (int i = 0; i < kRows; ++i, best += Simd::kWidth) {
      const int32x4_t(&of_row)[kVectors] = scores.at[i];
      const Simd::Ints first = {of_row[0], of_row[1]}, second = {of_row[2], of_row[3]};
      Simd::Ints top = Simd::max(first, second);
      if (!kFirstPanel) top = Simd::max(top, Simd::load_ints(best));
      Simd::store_ints(best, top);
    }
  }

  VQVAE_FAST_ALONE static void score_tiles(const int32_t* tiles, int64_t num_tiles,
                                           const float* ratio, const int32_t* group,
                                           const float* half_norm, Int8Words words, int32_t* best) {
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      score_panel<kTileRows, true>(tiles + tile * kTileRows * words.all, group, half_norm,
                                   ratio[tile], words, best + tile * kTileRows * Simd::kWidth);
    }
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      score_panel<kTileRows, false>(tiles + tile * kTileRows * words.all,
                                    group + words.all * kPanelCodes, half_norm + kPanelCodes,
                                    ratio[tile], words, best + tile * kTileRows * Simd::kWidth);
    }
  }

  // Scores the first kRows rows of a tile, for calls with few rows.
  template <int kRows>
  VQVAE_FAST_ALONE static void score_rows(const int32_t* tile, float ratio, const int32_t* group,
                                          const float* half_norm, Int8Words words, int32_t* best) {
    score_panel<kRows, true>(tile, group, half_norm, ratio, words, best);
    score_panel<kRows, false>(tile, group + words.all * kPanelCodes, half_norm + kPanelCodes, ratio,
                              words, best);
  }
};

constexpr Int8Filters kFilters = make_filters<NeonDot>();

}  // namespace

namespace isa {
extern const Engines neon_engines;  // the engines of neon.cpp
extern constinit const InstructionSet neondot = {"neondot", 20, machine_has_dotprod, &neon_engines,
                                                 &kFilters};
}  // namespace isa

}  // namespace vqvae_fast
