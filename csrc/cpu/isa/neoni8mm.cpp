// machines: aarch64 arm64
// flags: -march=armv8.2-a+dotprod+i8mm
// flags: -fno-tree-slp-vectorize -fno-schedule-insns
//
// The kernels use vectors explicitly. GCC's SLP vectorizer would also pair up scalars, such as the
// addresses of three codes; they would go through memory, which costs more than it saves. Before it
// chooses registers, GCC would move the loads of all codes ahead of the products, and three scores
// would go through memory.
//
// This file is the int8 filter for 64-bit Arm with products of matrices of bytes (smmla): two rows
// by two codes, eight elements of each. 32 registers hold 3 pairs of rows x 8 pairs of codes (24
// accumulators) and the operands.
#include <string.h>

#include "../int8_filter/filter_kernel.h"
#include "neon_probe.h"
#include "neon_simd.h"

namespace vqvae_fast {
namespace {

// A step is what one product takes of a vector: eight elements, in two words. The wide elements
// fill two steps, because each is 256 h + l with bytes h and l: the first step has all h.
static_assert(kWideDims == 8, "they fill a step");
static_assert(kLargestWide == 127 * 256 + 127, "h and l are bytes with a sign");

struct NeonI8mm {
  using Simd = NeonFilter;
  static constexpr int kTileRows = 6, kPanelCodes = 16, kGroupCodes = 2 * kPanelCodes;
  static constexpr int kCodeOffset = 0;  // smmla takes signed bytes
  static constexpr int kLargestRow = kLargestNarrow;
  static constexpr int64_t kSmallestDim = 8, kFewestElements = 1 << 14;

  // tile: [steps][kTileRows][2]; then [kTileRows] if the number of words is odd.
  static void pack_rows(int32_t* tile, Int8Words words, int64_t w, int64_t, Simd::Ints rows) {
    pack<kTileRows>(tile, words, w, rows, 0, kTileRows);
  }

  // group: [panels], and of each the same of kPanelCodes codes.
  static void pack_codes(int32_t* group, Int8Words words, int64_t w, int64_t first,
                         Simd::Ints codes) {
    pack<kPanelCodes>(group + first / kPanelCodes * words.all * kPanelCodes, words, w, codes,
                      first % kPanelCodes, Simd::kWidth);
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
    const auto score_rest = rest <= 2 ? score_pairs<1> : score_pairs<2>;
    score_rest(tiles + whole * kTileRows * words.all, ratio[whole], group, half_norm, words,
               best + whole * kTileRows * Simd::kWidth);
  }

  // Scores row r of a tile against one group, and writes the scores of all its codes.
  VQVAE_FAST_ALONE static void score_row(const int32_t* tile, int64_t r, float ratio,
                                         const int32_t* group, const float* half_norm,
                                         Int8Words words, int32_t* scores) {
    for (int64_t panel = 0; panel < kGroupCodes / kPanelCodes; ++panel) {
      Scores<1> of_pair;
      score(of_pair, tile, r / 2, group + panel * words.all * kPanelCodes,
            half_norm + panel * kPanelCodes, ratio, words);
      VQVAE_FAST_UNROLL
      for (int j = 0; j < kPairs; j += 2) {
        const int32x4_t a = of_pair.at[0][j], b = of_pair.at[0][j + 1];
        vst1q_s32(scores + panel * kPanelCodes + 2 * j, r % 2 == 0 ? firsts(a, b) : seconds(a, b));
      }
    }
  }

 private:
  static constexpr int kPairs = kPanelCodes / 2;  // of codes, in a panel
  static constexpr int kStepWords = 2;

  // Each vector holds the scores of two rows and two codes. The two scores of the first row come
  // before the two scores of the second row.
  template <int kRowPairs>
  struct Scores {
    int32x4_t at[kRowPairs][kPairs];
  };

  // Places word w of `count` vectors, from `first` on, among the kVectors of a tile or panel.
  template <int64_t kVectors>
  static void pack(int32_t* packed, Int8Words words, int64_t w, Simd::Ints vectors, int64_t first,
                   int64_t count) {
    if (w < words.wide) return pack_wide<kVectors>(packed, w, vectors, first, count);
    const bool half = w % kStepWords == 0 && w + 1 == words.all;
    int32_t* to = packed + w / kStepWords * kStepWords * kVectors + w % kStepWords;
    int32_t of_vectors[Simd::kWidth];
    Simd::store_ints(of_vectors, vectors);
    for (int64_t v = 0; v < count; ++v) {
      to[(half ? 1 : kStepWords) * (first + v)] = of_vectors[v];
    }
  }

  template <int64_t kVectors>
  static void pack_wide(int32_t* packed, int64_t w, Simd::Ints vectors, int64_t first,
                        int64_t count) {
    const int16x8_t low = vreinterpretq_s16_s32(vectors.low);
    const int16x8_t high = vreinterpretq_s16_s32(vectors.high);
    int8_t h[Simd::kWidth][2], l[Simd::kWidth][2];
    vst1q_s8(&h[0][0], vcombine_s8(vrshrn_n_s16(low, 8), vrshrn_n_s16(high, 8)));
    vst1q_s8(&l[0][0], vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
    int8_t* to = reinterpret_cast<int8_t*>(packed + kStepWords * first) + 2 * w;
    for (int64_t v = 0; v < count; ++v, to += kWideDims) {
      memcpy(to, h[v], 2);
      memcpy(to + kVectors * kWideDims, l[v], 2);
    }
  }

  // Returns the scores of the first row, or of the second, and of the codes of two pairs.
  static int32x4_t firsts(int32x4_t a, int32x4_t b) {
    return vreinterpretq_s32_s64(vzip1q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
  }
  static int32x4_t seconds(int32x4_t a, int32x4_t b) {
    return vreinterpretq_s32_s64(vzip2q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
  }

  // Loads a step of two vectors, or half a step with zeros in the place of the rest.
  template <bool kHalf>
  VQVAE_FAST_INLINE static int8x16_t load_pair(const int32_t* words) {
    if constexpr (kHalf) {
      const int32x4_t zero = vdupq_n_s32(0);
      const int32x4_t two = vcombine_s32(vld1_s32(words), vget_low_s32(zero));
      return vreinterpretq_s8_s32(vzip1q_s32(two, zero));
    } else {
      return vreinterpretq_s8_s32(vld1q_s32(words));
    }
  }

  // Adds the products of a step of some pairs of rows and of all codes of a panel.
  template <bool kHalf, int kRowPairs>
  VQVAE_FAST_INLINE static void add_step(Scores<kRowPairs>& scores, const int32_t* rows,
                                         const int32_t* codes) {
    constexpr int kPairWords = kHalf ? 2 : 2 * kStepWords;
    int8x16_t row[kRowPairs];
    VQVAE_FAST_UNROLL
    for (int i = 0; i < kRowPairs; ++i) row[i] = load_pair<kHalf>(rows + kPairWords * i);
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kPairs; ++j) {
      const int8x16_t code = load_pair<kHalf>(codes + kPairWords * j);
      VQVAE_FAST_UNROLL
      for (int i = 0; i < kRowPairs; ++i) {
        scores.at[i][j] = vmmlaq_s32(scores.at[i][j], row[i], code);
      }
    }
  }

  template <int kRowPairs>
  VQVAE_FAST_INLINE static void times_256(Scores<kRowPairs>& scores) {
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kPairs; ++j) {
      VQVAE_FAST_UNROLL
      for (int i = 0; i < kRowPairs; ++i) scores.at[i][j] = vshlq_n_s32(scores.at[i][j], 8);
    }
  }

  // Keeps a compiler from holding what it has loaded in registers that the scores need.
  VQVAE_FAST_INLINE static void forget_operands() { __asm__ volatile("" ::: "memory"); }

  // Sets the scores to those of the wide elements, whose products are
  // 256 (256 h h' + h l' + l h') + l l'. A sum may overflow before the end, but the end fits.
  template <int kRowPairs>
  VQVAE_FAST_INLINE static void score_wide(Scores<kRowPairs>& scores, const int32_t* rows,
                                           const int32_t* panel) {
    const int32_t *low_rows = rows + kStepWords * kTileRows,
                  *low_codes = panel + kStepWords * kPanelCodes;
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kPairs; ++j) {
      VQVAE_FAST_UNROLL
      for (int i = 0; i < kRowPairs; ++i) scores.at[i][j] = vdupq_n_s32(0);
    }
    add_step<false>(scores, rows, panel);
    times_256(scores);
    forget_operands();
    add_step<false>(scores, rows, low_codes);
    forget_operands();
    add_step<false>(scores, low_rows, panel);
    times_256(scores);
    forget_operands();
    add_step<false>(scores, low_rows, low_codes);
    forget_operands();
  }

  // Sets the scores to what they begin with, or adds that to them.
  template <bool kAdd, int kRowPairs>
  VQVAE_FAST_INLINE static void start(Scores<kRowPairs>& scores, const float* half_norm,
                                      float ratio) {
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kPairs; j += 2) {
      const int32x4_t start = Simd::start_of(half_norm + 2 * j, ratio);
      const int32x4_t of_pairs[] = {firsts(start, start), seconds(start, start)};
      VQVAE_FAST_UNROLL
      for (int i = 0; i < kRowPairs; ++i) {
        VQVAE_FAST_UNROLL
        for (int k = 0; k < 2; ++k) {
          int32x4_t& score = scores.at[i][j + k];
          score = kAdd ? vaddq_s32(score, of_pairs[k]) : of_pairs[k];
        }
      }
    }
  }

  // Scores kRowPairs pairs of rows of a tile, from first_pair on, against one panel.
  template <int kRowPairs>
  VQVAE_FAST_INLINE static void score(Scores<kRowPairs>& scores, const int32_t* tile,
                                      int64_t first_pair, const int32_t* panel,
                                      const float* half_norm, float ratio, Int8Words words) {
    const int32_t* rows = tile + 2 * kStepWords * first_pair;
    if (words.wide > 0) {
      score_wide(scores, rows, panel);
      start<true>(scores, half_norm, ratio);
    } else {
      start<false>(scores, half_norm, ratio);
    }
    int64_t w = words.wide;
    rows += w * kTileRows;
    panel += w * kPanelCodes;
    for (; w + kStepWords <= words.all; w += kStepWords) {
      add_step<false>(scores, rows, panel);
      rows += kStepWords * kTileRows;
      panel += kStepWords * kPanelCodes;
    }
    // Pairs of half a step lie half as far apart.
    if (w < words.all) add_step<true>(scores, rows - 2 * first_pair, panel);
  }

  // Scores the first kRowPairs pairs of rows of a tile against one panel; keeps the best of each
  // lane in best[row * kWidth].
  template <int kRowPairs, bool kFirstPanel>
  VQVAE_FAST_INLINE static void score_panel(const int32_t* tile, const int32_t* panel,
                                            const float* half_norm, float ratio, Int8Words words,
                                            int32_t* best) {
    Scores<kRowPairs> scores;
    score(scores, tile, 0, panel, half_norm, ratio, words);
    VQVAE_FAST_UNROLL
    for (int i = 0; i < kRowPairs; ++i) {
      int32x4_t top[4];  // of four pairs of codes, which have the eight lanes
      VQVAE_FAST_UNROLL
      for (int j = 0; j < 4; ++j) top[j] = vmaxq_s32(scores.at[i][j], scores.at[i][j + 4]);
      keep<kFirstPanel>(best, {firsts(top[0], top[1]), firsts(top[2], top[3])});
      keep<kFirstPanel>(best + Simd::kWidth, {seconds(top[0], top[1]), seconds(top[2], top[3])});
      best += 2 * Simd::kWidth;
    }
  }

  template <bool kFirstPanel>
  VQVAE_FAST_INLINE static void keep(int32_t* best, Simd::Ints top) {
    Simd::store_ints(best, kFirstPanel ? top : Simd::max(top, Simd::load_ints(best)));
  }

  VQVAE_FAST_ALONE static void score_tiles(const int32_t* tiles, int64_t num_tiles,
                                           const float* ratio, const int32_t* group,
                                           const float* half_norm, Int8Words words, int32_t* best) {
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      score_panel<kTileRows / 2, true>(tiles + tile * kTileRows * words.all, group, half_norm,
                                       ratio[tile], words, best + tile * kTileRows * Simd::kWidth);
    }
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      score_panel<kTileRows / 2, false>(tiles + tile * kTileRows * words.all,
                                        group + words.all * kPanelCodes, half_norm + kPanelCodes,
                                        ratio[tile], words, best + tile * kTileRows * Simd::kWidth);
    }
  }

  // Scores the first kRowPairs pairs of rows of a tile, for calls with few rows.
  template <int kRowPairs>
  VQVAE_FAST_ALONE static void score_pairs(const int32_t* tile, float ratio, const int32_t* group,
                                           const float* half_norm, Int8Words words, int32_t* best) {
    score_panel<kRowPairs, true>(tile, group, half_norm, ratio, words, best);
    score_panel<kRowPairs, false>(tile, group + words.all * kPanelCodes, half_norm + kPanelCodes,
                                  ratio, words, best);
  }
};

constexpr Int8Filters kFilters = make_filters<NeonI8mm>();

}  // namespace

namespace isa {
extern const Engines neon_engines;  // the engines of neon.cpp
extern constinit const InstructionSet neoni8mm = {"neoni8mm", 30, machine_has_i8mm, &neon_engines,
                                                  &kFilters};
}  // namespace isa

}  // namespace vqvae_fast
