// This file is the Int8Kernel of processors that multiply vectors of bytes: a tile of rows meets a
// panel of two vectors of codes, and all scores of both stay in registers.
//
// Products says how an instruction set multiplies. It has
//   kLargestRow, kSmallestDim, kFewestElements  those of the Int8Kernel
//   add(sum, codes, row)       adds four products of unsigned and signed bytes to each lane
//   add_wide(sum, codes, row)  adds two products of signed 16-bit integers to each lane
#pragma once

#include <stdint.h>

#include "../contract.h"
#include "../prefetch.h"
#include "filter_kernel.h"

namespace vqvae_fast {
namespace {

template <class SimdOfKernel, class Products, int kRowsOfTile>
struct TiledKernel {
  using Simd = SimdOfKernel;
  using Ints = typename Simd::Ints;
  static constexpr int kWidth = Simd::kWidth;
  static constexpr int kTileRows = kRowsOfTile, kPanelCodes = 2 * kWidth;
  static constexpr int kGroupCodes = 2 * kPanelCodes;
  static constexpr int kCodeOffset = 128;  // the products take unsigned bytes times signed ones
  static constexpr int kLargestRow = Products::kLargestRow;
  static constexpr int64_t kSmallestDim = Products::kSmallestDim;
  static constexpr int64_t kFewestElements = Products::kFewestElements;

  // tile: [words][kTileRows].
  static void pack_rows(int32_t* tile, Int8Words, int64_t w, int64_t first, Ints rows) {
    static_assert(kTileRows <= kWidth, "one vector holds a word of all rows");
    Simd::template store_first_ints<kTileRows>(tile + w * kTileRows + first, rows);
  }

  // group: [panels][words][kPanelCodes].
  static void pack_codes(int32_t* group, Int8Words words, int64_t w, int64_t first, Ints codes) {
    const int64_t panel = first / kPanelCodes;
    Simd::store_ints(group + (panel * words.all + w) * kPanelCodes + first % kPanelCodes, codes);
  }

  // Scores the rows of a block against one group: a panel stays in the L1 for all tiles.
  VQVAE_FAST_INLINE static void score_group(const int32_t* tiles, int64_t num_rows,
                                            const float* ratio, const int32_t* group,
                                            const float* half_norm, Int8Words words,
                                            int32_t* best) {
    constexpr int kSmallTile = kTileRows > 8 ? 8 : 4;  // more rows take about as long as a tile
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
               best + whole * kTileRows * kWidth);
  }

  // Scores row r of a tile against one group, and writes the scores of all its codes. Of two
  // neighbouring words each has sums of its own, because in one sum every step waits for the last.
  VQVAE_FAST_ALONE static void score_row(const int32_t* tile, int64_t r, float ratio,
                                         const int32_t* group, const float* half_norm,
                                         Int8Words words, int32_t* scores) {
    Ints even[kGroupVectors], odd[kGroupVectors];
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kGroupVectors; ++j) {
      even[j] = start_of(half_norm + kWidth * j, ratio);
      odd[j] = Simd::broadcast_int(0);
    }
    int64_t w = 0;
    for (; w < words.wide; ++w) add_word<Products::add_wide>(even, tile + r, group, words, w);
    for (; w + 2 <= words.all; w += 2) {
      add_word<Products::add>(even, tile + r, group, words, w);
      add_word<Products::add>(odd, tile + r, group, words, w + 1);
    }
    if (w < words.all) add_word<Products::add>(odd, tile + r, group, words, w);
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kGroupVectors; ++j) {
      Simd::store_ints(scores + kWidth * j, Simd::add(even[j], odd[j]));
    }
  }

 private:
  static constexpr int kGroupVectors = kGroupCodes / kWidth;

  // Returns what the scores of a vector of codes begin with.
  VQVAE_FAST_INLINE static Ints start_of(const float* half_norm, float ratio) {
    const auto start = Simd::multiply(Simd::load(half_norm), Simd::broadcast(ratio));
    return Simd::max(Simd::round(start), Simd::broadcast_int(kUnusable));
  }

  // Adds the products of one word of a row and of all codes of a group.
  template <void (*kAdd)(Ints&, Ints, Ints)>
  VQVAE_FAST_INLINE static void add_word(Ints (&scores)[kGroupVectors], const int32_t* row,
                                         const int32_t* group, Int8Words words, int64_t w) {
    const Ints element = Simd::broadcast_int(row[w * kTileRows]);
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kGroupVectors; ++j) {
      const int32_t* panel = group + j / 2 * words.all * kPanelCodes;
      kAdd(scores[j], Simd::load_ints(panel + w * kPanelCodes + kWidth * (j % 2)), element);
    }
  }

  VQVAE_FAST_ALONE static void score_tiles(const int32_t* tiles, int64_t num_tiles,
                                           const float* ratio, const int32_t* group,
                                           const float* half_norm, Int8Words words, int32_t* best) {
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      score_tile<kTileRows, true>(tiles + tile * kTileRows * words.all, group, half_norm,
                                  ratio[tile], words, best + tile * kTileRows * kWidth);
    }
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      score_tile<kTileRows, false>(tiles + tile * kTileRows * words.all,
                                   group + words.all * kPanelCodes, half_norm + kPanelCodes,
                                   ratio[tile], words, best + tile * kTileRows * kWidth);
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
  template <int kRows, void (*kAdd)(Ints&, Ints, Ints)>
  VQVAE_FAST_INLINE static void add_words(Ints (&scores)[kRows][2], int64_t words,
                                          const int32_t*& rows, const int32_t*& panel) {
    constexpr int kLine = 64 / int{sizeof(int32_t)};
    for (int64_t w = 0; w < words; ++w) {
      const Ints codes0 = Simd::load_ints(panel);
      const Ints codes1 = Simd::load_ints(panel + kWidth);
      VQVAE_FAST_UNROLL
      for (int i = 0; i < kPanelCodes; i += kLine) prefetch_ahead(panel + i);
      VQVAE_FAST_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const Ints row = Simd::broadcast_int(rows[i]);
        kAdd(scores[i][0], codes0, row);
        kAdd(scores[i][1], codes1, row);
      }
      rows += kTileRows;
      panel += kPanelCodes;
    }
  }

  // Scores the first kRows rows of a tile against one panel; keeps the best of each lane in
  // best[row * kWidth].
  template <int kRows, bool kFirstPanel>
  VQVAE_FAST_INLINE static void score_tile(const int32_t* rows, const int32_t* panel,
                                           const float* half_norm, float ratio, Int8Words words,
                                           int32_t* best) {
    Ints scores[kRows][2];
    VQVAE_FAST_UNROLL
    for (int j = 0; j < 2; ++j) {
      const Ints start = start_of(half_norm + kWidth * j, ratio);
      VQVAE_FAST_UNROLL
      for (int i = 0; i < kRows; ++i) scores[i][j] = start;
    }
    add_words<kRows, Products::add_wide>(scores, words.wide, rows, panel);
    add_words<kRows, Products::add>(scores, words.all - words.wide, rows, panel);
    VQVAE_FAST_UNROLL
    for (int i = 0; i < kRows; ++i) {
      Ints top = Simd::max(scores[i][0], scores[i][1]);
      if (!kFirstPanel) top = Simd::max(top, Simd::load_ints(best + kWidth * i));
      Simd::store_ints(best + kWidth * i, top);
    }
  }
};

}  // namespace
}  // namespace vqvae_fast
