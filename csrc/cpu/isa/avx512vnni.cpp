// machines: x86_64
// flags: -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mf16c -mfma
// flags: -fno-tree-slp-vectorize
//
// The kernels use vectors explicitly. GCC's SLP vectorizer would also pair up scalars, such as the
// addresses of three codes; they would go through memory, which costs more than it saves.
//
// This file is the int8 filter for AVX-512 VNNI: 32 registers hold 14 rows x 2 vectors of codes (28
// accumulators) and the operands. docs/performance.md tells what limits it.
#include "../int8_filter/filter_kernel.h"
#include "../prefetch.h"
#include "avx512_products.h"
#include "avx512_simd.h"

namespace vqvae_fast {
namespace {

struct Vnni {
  using Simd = Avx512Filter;
  static constexpr int kTileRows = 14, kPanelCodes = 32, kGroupCodes = 2 * kPanelCodes;
  static constexpr int kCodeOffset = 128;  // vpdpbusd takes unsigned bytes times signed ones

  // tile: [words][kTileRows].
  static void pack_rows(int32_t* tile, Int8Words, int64_t w, int64_t first, __m512i rows) {
    static_assert(kTileRows <= Simd::kWidth, "one vector holds a word of all rows");
    _mm512_mask_storeu_epi32(tile + w * kTileRows + first, (1 << kTileRows) - 1, rows);
  }

  // group: [panels][words][kPanelCodes].
  static void pack_codes(int32_t* group, Int8Words words, int64_t w, int64_t first, __m512i codes) {
    const int64_t panel = first / kPanelCodes;
    _mm512_storeu_si512(group + (panel * words.all + w) * kPanelCodes + first % kPanelCodes, codes);
  }

  // Scores the rows of a block against one group: a panel stays in the L1 for all tiles.
  VQVAE_FAST_INLINE static void score_group(const int32_t* tiles, int64_t num_rows,
                                            const float* ratio, const int32_t* group,
                                            const float* half_norm, Int8Words words,
                                            int32_t* best) {
    constexpr int kSmallTile = 8;  // from here on a whole tile takes about as long
    int64_t whole = num_rows / kTileRows;
    const int64_t rest = num_rows - whole * kTileRows;
    if (rest > kSmallTile) ++whole;
    if (whole > 0) score_tiles(tiles, whole, ratio, group, half_norm, words, best);
    if (rest == 0 || rest > kSmallTile) return;
    const auto score_rest = rest == 1   ? score_rows<1>
                            : rest == 2 ? score_rows<2>
                            : rest <= 4 ? score_rows<4>
                                        : score_rows<kSmallTile>;
    score_rest(tiles + whole * kTileRows * words.all, ratio[whole], group, half_norm, words,
               best + whole * kTileRows * 16);
  }

  // Scores row r of a tile against one group, and writes the scores of all its codes. Of two
  // neighbouring words each has sums of its own, because in one sum every step waits for the last.
  VQVAE_FAST_ALONE static void score_row(const int32_t* tile, int64_t r, float ratio,
                                         const int32_t* group, const float* half_norm,
                                         Int8Words words, int32_t* scores) {
    __m512i even[kGroupVectors], odd[kGroupVectors];
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kGroupVectors; ++j) {
      even[j] = start_of(half_norm + 16 * j, ratio);
      odd[j] = _mm512_setzero_si512();
    }
    int64_t w = 0;
    for (; w < words.wide; ++w) add_word<add_wide_products>(even, tile + r, group, words, w);
    for (; w + 2 <= words.all; w += 2) {
      add_word<add_products>(even, tile + r, group, words, w);
      add_word<add_products>(odd, tile + r, group, words, w + 1);
    }
    if (w < words.all) add_word<add_products>(odd, tile + r, group, words, w);
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kGroupVectors; ++j) {
      _mm512_storeu_si512(scores + 16 * j, _mm512_add_epi32(even[j], odd[j]));
    }
  }

 private:
  static constexpr int kGroupVectors = kGroupCodes / 16;

  // Returns what the scores of 16 codes begin with.
  VQVAE_FAST_INLINE static __m512i start_of(const float* half_norm, float ratio) {
    const __m512 start = _mm512_mul_ps(_mm512_loadu_ps(half_norm), _mm512_set1_ps(ratio));
    return _mm512_max_epi32(_mm512_cvtps_epi32(start), _mm512_set1_epi32(kUnusable));
  }

  // Adds the products of one word of a row and of all codes of a group.
  template <void (*kAdd)(__m512i&, __m512i, __m512i)>
  VQVAE_FAST_INLINE static void add_word(__m512i (&scores)[kGroupVectors], const int32_t* row,
                                         const int32_t* group, Int8Words words, int64_t w) {
    const __m512i element = _mm512_set1_epi32(row[w * kTileRows]);
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kGroupVectors; ++j) {
      const int32_t* panel = group + j / 2 * words.all * kPanelCodes;
      kAdd(scores[j], _mm512_loadu_si512(panel + w * kPanelCodes + 16 * (j % 2)), element);
    }
  }

  VQVAE_FAST_ALONE static void score_tiles(const int32_t* tiles, int64_t num_tiles,
                                           const float* ratio, const int32_t* group,
                                           const float* half_norm, Int8Words words, int32_t* best) {
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      score_tile<kTileRows, true>(tiles + tile * kTileRows * words.all, group, half_norm,
                                  ratio[tile], words, best + tile * kTileRows * 16);
    }
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      score_tile<kTileRows, false>(tiles + tile * kTileRows * words.all,
                                   group + words.all * kPanelCodes, half_norm + kPanelCodes,
                                   ratio[tile], words, best + tile * kTileRows * 16);
    }
  }

  // Scores the first kRows rows of a tile, for calls with few rows.
  template <int kRows>
  VQVAE_FAST_ALONE static void score_rows(const int32_t* tile, float ratio, const int32_t* group,
                                          const float* half_norm, Int8Words words, int32_t* best) {
    score_tile<kRows, true>(tile, group, half_norm, ratio, words, best);
    score_tile<kRows, false>(tile, group + words.all * kPanelCodes, half_norm + kPanelCodes, ratio,
                             words, best);
  }

  // Adds the products of `words` words to the scores, and moves on behind them.
  template <int kRows, void (*kAdd)(__m512i&, __m512i, __m512i)>
  VQVAE_FAST_INLINE static void add_words(__m512i (&scores)[kRows][2], int64_t words,
                                          const int32_t*& rows, const int32_t*& panel) {
    for (int64_t w = 0; w < words; ++w) {
      const __m512i codes0 = _mm512_loadu_si512(panel);
      const __m512i codes1 = _mm512_loadu_si512(panel + 16);
      prefetch_ahead(panel);
      prefetch_ahead(panel + 16);
      VQVAE_FAST_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const __m512i row = _mm512_set1_epi32(rows[i]);
        kAdd(scores[i][0], codes0, row);
        kAdd(scores[i][1], codes1, row);
      }
      rows += kTileRows;
      panel += kPanelCodes;
    }
  }

  // Scores the first kRows rows of a tile against one panel; keeps the best of each lane in
  // best[row * 16].
  template <int kRows, bool kFirstPanel>
  VQVAE_FAST_INLINE static void score_tile(const int32_t* rows, const int32_t* panel,
                                           const float* half_norm, float ratio, Int8Words words,
                                           int32_t* best) {
    __m512i scores[kRows][2];
    VQVAE_FAST_UNROLL
    for (int j = 0; j < 2; ++j) {
      const __m512i start = start_of(half_norm + 16 * j, ratio);
      VQVAE_FAST_UNROLL
      for (int i = 0; i < kRows; ++i) scores[i][j] = start;
    }
    add_words<kRows, add_wide_products>(scores, words.wide, rows, panel);
    add_words<kRows, add_products>(scores, words.all - words.wide, rows, panel);
    VQVAE_FAST_UNROLL
    for (int i = 0; i < kRows; ++i) {
      __m512i top = _mm512_max_epi32(scores[i][0], scores[i][1]);
      if (!kFirstPanel) top = _mm512_max_epi32(top, _mm512_loadu_si512(best + 16 * i));
      _mm512_storeu_si512(best + 16 * i, top);
    }
  }
};

constexpr Int8Filters kFilters = make_filters<Vnni>();

VQVAE_FAST_PROBE bool machine_has() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}

}  // namespace

namespace isa {
extern const Engines avx512_engines;  // the engines of avx512.cpp
extern constinit const InstructionSet avx512vnni = {"avx512vnni", 30, machine_has, &avx512_engines,
                                                    &kFilters};
}  // namespace isa

}  // namespace vqvae_fast
