// This file is the int8 filter on a matrix unit: an Int8Kernel over the instructions of its tiles.
// Tiles is AmxTiles (amx_tiles.h), or a stand-in in plain C++ (tests/ops/amx_stand_in.h).
//
// The unit adds the products of 16 rows and 16 codes to a tile of 16 x 16 scores. Scores leave it
// through memory, where a vector instruction takes the best of each lane. What the unit multiplies,
// what is stored and what is read must overlap, so each function below reads the scores that were
// stored a step before. docs/performance.md tells what limits it.
#pragma once

#include "../int8_filter/filter_kernel.h"
#include "amx_tiles.h"
#include "avx512_products.h"
#include "avx512_simd.h"

namespace vqvae_fast {
namespace {

// A tile of the unit has so many rows, and so many words in a row.
constexpr int64_t kSide = 16, kTileWords = kSide * kSide;
constexpr int64_t kStride = kSide * int64_t{sizeof(int32_t)};  // bytes from one row to the next

// AmxDepth divides the narrow words of a vector into steps, each of which is one product of tiles.
// All steps have the same number of words: if the last would have fewer, it begins earlier, and the
// words that it shares with the step before are zero in its rows.
struct AmxDepth {
  int64_t steps, words, last_first;

  VQVAE_FAST_INLINE explicit AmxDepth(Int8Words of)
      : steps((of.all - of.wide + kSide - 1) / kSide),
        words(smaller(of.all - of.wide, kSide)),
        last_first(of.all - of.wide - words) {}

  VQVAE_FAST_INLINE int64_t first_word(int64_t step) const {
    return step + 1 < steps ? kSide * step : last_first;
  }
  VQVAE_FAST_INLINE int64_t step_of(int64_t word) const { return smaller(word / kSide, steps - 1); }
};

template <class Tiles>
struct AmxKernel {
  using Simd = Avx512Filter;
  static constexpr int kTileRows = 2 * kSide, kGroupCodes = 8 * kSide;
  static constexpr int kCodeOffset = 0;  // both factors are signed
  static constexpr int kLargestRow = kLargestNarrow;
  static constexpr int64_t kSmallestDim = 8, kFewestElements = 1 << 14;

  // A Session gives the calling thread tiles of the shapes that a search needs, and gives back
  // those that it finds: another library may have left its own in this thread. Their contents are
  // lost, which the calling convention allows to every function.
  class Session {
   public:
    explicit Session(Int8Words words) {
      const AmxDepth depth(words);
      TileShapes shapes{};
      shapes.palette = 1;
      for (int tile = 0; tile < 8; ++tile) {
        shapes.rows[tile] = uint8_t(kSide);
        shapes.row_bytes[tile] = uint16_t(kStride);
      }
      if (depth.steps == 1) {
        shapes.row_bytes[kRowsTile] = uint16_t(depth.words * 4);
        shapes.rows[kCodesTile<1, 0>] = shapes.rows[kCodesTile<1, 1>] = uint8_t(depth.words);
      }
      Tiles::read_configuration(found_);
      Tiles::configure(shapes);
    }
    ~Session() {
      if (found_.palette == 0) {
        Tiles::release();
      } else {
        Tiles::configure(found_);
      }
    }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

   private:
    TileShapes found_;
  };

  // Returns the words that a row takes in a tile of rows.
  VQVAE_FAST_INLINE static int64_t row_words(Int8Words words) {
    return words.wide + AmxDepth(words).steps * kSide;
  }

  // tile: [wide words][kTileRows], then [halves][steps][kSide rows][kSide words]. Word 0 comes
  // first, so it can clear what the last step shares with the one before.
  static void pack_rows(int32_t* tile, Int8Words words, int64_t w, int64_t first, __m512i rows) {
    const AmxDepth depth(words);
    int32_t* half = half_of(tile, words, depth, first / kSide);
    if (w == 0 && depth.steps > 1) {
      int32_t* last = half + (depth.steps - 1) * kTileWords;
      for (int64_t i = 0; i < kTileWords; i += 16) {
        _mm512_storeu_si512(last + i, _mm512_setzero_si512());
      }
    }
    if (w < words.wide) {
      _mm512_storeu_si512(tile + w * kTileRows + first, rows);
      return;
    }
    const int64_t word = w - words.wide, step = depth.step_of(word);
    const __m512i places = _mm512_slli_epi32(
        _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), 4);
    _mm512_i32scatter_epi32(half + step * kTileWords + word - depth.first_word(step), places, rows,
                            4);
  }

  // group: [tiles of codes][words][kSide codes].
  static void pack_codes(int32_t* group, Int8Words words, int64_t w, int64_t first, __m512i codes) {
    _mm512_storeu_si512(group + (first / kSide * words.all + w) * kSide, codes);
  }

  // Scores the rows of a block against one group, which stays in the L1 for all tiles of rows.
  VQVAE_FAST_INLINE static void score_group(const int32_t* tiles, int64_t num_rows,
                                            const float* ratio, const int32_t* group,
                                            const float* half_norm, Int8Words words,
                                            int32_t* best) {
    const int64_t steps = AmxDepth(words).steps;
    const bool wide = words.wide > 0;
    const auto score = steps == 1   ? (wide ? score_in_turn<1, true> : score_in_turn<1, false>)
                       : steps == 2 ? (wide ? score_in_turn<2, true> : score_in_turn<2, false>)
                       : steps == 3 ? (wide ? score_in_turn<3, true> : score_in_turn<3, false>)
                                    : (wide ? score_squares<true> : score_squares<false>);
    score(tiles, num_rows, ratio, group, half_norm, words, best);
  }

  // Scores row r of a tile against one group, and writes the scores of all its codes. The unit
  // would score 16 rows, so vectors serve. Their product takes unsigned bytes of codes: 128 is
  // added to each, and its product with the row is subtracted.
  VQVAE_FAST_ALONE static void score_row(const int32_t* tile, int64_t r, float ratio,
                                         const int32_t* group, const float* half_norm,
                                         Int8Words words, int32_t* scores) {
    const AmxDepth depth(words);
    const int32_t* row = half_of(tile, words, depth, r / kSide) + r % kSide * kSide;
    const __m512i sign_bits = _mm512_set1_epi32(int32_t(0x80808080));
    __m512i sums[kGroupTiles], raised = _mm512_setzero_si512();
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kGroupTiles; ++j) sums[j] = start_of(half_norm + kSide * j, ratio);
    for (int64_t w = 0; w < words.wide; ++w, group += kSide) {
      const __m512i element = _mm512_set1_epi32(tile[w * kTileRows + r]);
      VQVAE_FAST_UNROLL
      for (int j = 0; j < kGroupTiles; ++j) {
        Vnni::add_wide(sums[j], _mm512_loadu_si512(group + j * words.all * kSide), element);
      }
    }
    for (int64_t w = 0; w < words.all - words.wide; ++w, group += kSide) {
      const int64_t step = depth.step_of(w);
      const __m512i element =
          _mm512_set1_epi32(row[step * kTileWords + w - depth.first_word(step)]);
      Vnni::add(raised, sign_bits, element);
      VQVAE_FAST_UNROLL
      for (int j = 0; j < kGroupTiles; ++j) {
        const __m512i codes = _mm512_loadu_si512(group + j * words.all * kSide);
        Vnni::add(sums[j], _mm512_xor_si512(codes, sign_bits), element);
      }
    }
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kGroupTiles; ++j) {
      _mm512_storeu_si512(scores + kSide * j, _mm512_sub_epi32(sums[j], raised));
    }
  }

 private:
  static constexpr int kGroupTiles = kGroupCodes / kSide, kGroupPairs = kGroupTiles / 2;
  static constexpr int64_t kWideWords = kWideDims / 2;
  // Tiles 0 to 3 are scores. Rows follow, a tile for each step that stays in the unit, and then the
  // codes of a pair, which share a tile if only one is left.
  static constexpr int kRowsTile = 4;
  template <int kRowTiles, int kOfPair>
  static constexpr int kCodesTile = kRowsTile + kRowTiles + (kRowTiles < 3 ? kOfPair : 0);

  // Returns the narrow words of 16 rows of a tile.
  template <class Words>
  VQVAE_FAST_INLINE static Words* half_of(Words* tile, Int8Words words, const AmxDepth& depth,
                                          int64_t half) {
    return tile + words.wide * kTileRows + half * depth.steps * kTileWords;
  }

  // Returns what the scores of 16 codes begin with.
  VQVAE_FAST_INLINE static __m512i start_of(const float* half_norm, float ratio) {
    const __m512 start = _mm512_mul_ps(_mm512_loadu_ps(half_norm), _mm512_set1_ps(ratio));
    return _mm512_max_epi32(_mm512_cvtps_epi32(start), _mm512_set1_epi32(kUnusable));
  }
  VQVAE_FAST_INLINE static void write_starts(const float* half_norm, float ratio, int32_t* starts) {
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kGroupTiles; ++j) {
      _mm512_store_si512(starts + kSide * j, start_of(half_norm + kSide * j, ratio));
    }
  }

  // Returns the best of each lane of two tiles of scores, in row i; adds the wide products first.
  // wide_rows points to word 0 of row i.
  template <bool kWide>
  VQVAE_FAST_INLINE static __m512i best_of_pair(const int32_t* scores, int64_t i,
                                                const int32_t* wide_rows,
                                                const __m512i (&wide_codes)[2 * kWideWords]) {
    __m512i first = _mm512_load_si512(scores + i * kSide);
    __m512i second = _mm512_load_si512(scores + kTileWords + i * kSide);
    if constexpr (kWide) {
      VQVAE_FAST_UNROLL
      for (int w = 0; w < kWideWords; ++w) {
        const __m512i row = _mm512_set1_epi32(wide_rows[w * kTileRows]);
        Vnni::add_wide(first, wide_codes[w], row);
        Vnni::add_wide(second, wide_codes[kWideWords + w], row);
      }
    }
    return _mm512_max_epi32(first, second);
  }

  // Loads the wide words of two tiles of codes.
  template <bool kWide>
  VQVAE_FAST_INLINE static void load_wide_codes(const int32_t* codes, Int8Words words,
                                                __m512i (&wide_codes)[2 * kWideWords]) {
    if constexpr (kWide) {
      VQVAE_FAST_UNROLL
      for (int w = 0; w < kWideWords; ++w) {
        wide_codes[w] = _mm512_loadu_si512(codes + w * kSide);
        wide_codes[kWideWords + w] = _mm512_loadu_si512(codes + (words.all + w) * kSide);
      }
    }
  }

  // ---- Few steps: the rows stay in the unit, and pairs of tiles of codes take turns
  // --------------

  template <int kSteps, int kStep = 0>
  VQVAE_FAST_INLINE static void load_rows(const int32_t* half) {
    Tiles::template load<kRowsTile + kStep>(half + kStep * kTileWords, kStride);
    if constexpr (kStep + 1 < kSteps) load_rows<kSteps, kStep + 1>(half);
  }

  // Multiplies 16 rows with a pair of tiles of codes into the scores of tiles 2 kTurn and
  // 2 kTurn + 1.
  template <int kSteps, int kTurn, int kStep = 0>
  VQVAE_FAST_INLINE static void multiply_pair(const int32_t* codes, Int8Words words,
                                              const AmxDepth& depth, const int32_t* starts) {
    constexpr int kScores = 2 * kTurn;
    if constexpr (kStep == 0) {
      Tiles::template load<kScores>(starts, 0);
      Tiles::template load<kScores + 1>(starts + kSide, 0);
    }
    const int64_t first_word = kStep + 1 < kSteps ? kSide * kStep : depth.last_first;
    const int32_t* of_step = codes + (words.wide + first_word) * kSide;
    Tiles::template load<kCodesTile<kSteps, 0>>(of_step, kStride);
    Tiles::template add_products<kScores, kRowsTile + kStep, kCodesTile<kSteps, 0>>();
    Tiles::template load<kCodesTile<kSteps, 1>>(of_step + words.all * kSide, kStride);
    Tiles::template add_products<kScores + 1, kRowsTile + kStep, kCodesTile<kSteps, 1>>();
    if constexpr (kStep + 1 < kSteps) {
      multiply_pair<kSteps, kTurn, kStep + 1>(codes, words, depth, starts);
    }
  }

  template <int kTurn>
  VQVAE_FAST_INLINE static void store_pair(int32_t* scores) {
    Tiles::template store<2 * kTurn>(scores, kStride);
    Tiles::template store<2 * kTurn + 1>(scores + kTileWords, kStride);
  }

  template <bool kWide, bool kFirst>
  VQVAE_FAST_INLINE static void raise_tops(const int32_t* scores, const int32_t* wide_rows,
                                           const int32_t* codes, Int8Words words,
                                           __m512i (&top)[kSide]) {
    __m512i wide_codes[2 * kWideWords];
    load_wide_codes<kWide>(codes, words, wide_codes);
    VQVAE_FAST_UNROLL
    for (int i = 0; i < kSide; ++i) {
      const __m512i best = best_of_pair<kWide>(scores, i, wide_rows + i, wide_codes);
      top[i] = kFirst ? best : _mm512_max_epi32(top[i], best);
    }
  }

  // While the unit multiplies a pair of tiles of codes, the pair before it is stored, and the one
  // before that is read. The best scores of 16 rows stay in registers. The last two pairs of 16
  // rows are read while the first two of the next 16 are multiplied.
  template <int kSteps, bool kWide>
  VQVAE_FAST_ALONE static void score_in_turn(const int32_t* tiles, int64_t num_rows,
                                             const float* ratio, const int32_t* group,
                                             const float* half_norm, Int8Words words,
                                             int32_t* best) {
    static_assert(kGroupPairs == 4, "the steps below");
    alignas(kAlignment) int32_t starts[kGroupCodes], scores[2 * kTileWords];
    const AmxDepth depth(words);
    const int64_t tile_words = kTileRows * row_words(words),
                  halves = (num_rows + kSide - 1) / kSide;
    const auto pair = [&](int64_t p) { return group + p * 2 * words.all * kSide; };
    const auto tile_of = [&](int64_t h) { return tiles + h / 2 * tile_words; };
    const auto multiply_first = [&](int64_t h) {
      if (h % 2 == 0) write_starts(half_norm, ratio[h / 2], starts);
      load_rows<kSteps>(half_of(tile_of(h), words, depth, h % 2));
      multiply_pair<kSteps, 0>(pair(0), words, depth, starts);
    };
    multiply_first(0);
    multiply_pair<kSteps, 1>(pair(1), words, depth, starts + 2 * kSide);
    for (int64_t h = 0; h < halves; ++h) {
      const int32_t* wide_rows = tile_of(h) + h % 2 * kSide;
      const bool more = h + 1 < halves;
      __m512i top[kSide];
      store_pair<0>(scores);
      multiply_pair<kSteps, 0>(pair(2), words, depth, starts + 4 * kSide);
      raise_tops<kWide, true>(scores, wide_rows, pair(0), words, top);
      store_pair<1>(scores);
      multiply_pair<kSteps, 1>(pair(3), words, depth, starts + 6 * kSide);
      raise_tops<kWide, false>(scores, wide_rows, pair(1), words, top);
      store_pair<0>(scores);
      if (more) multiply_first(h + 1);
      raise_tops<kWide, false>(scores, wide_rows, pair(2), words, top);
      store_pair<1>(scores);
      if (more) multiply_pair<kSteps, 1>(pair(1), words, depth, starts + 2 * kSide);
      raise_tops<kWide, false>(scores, wide_rows, pair(3), words, top);
      VQVAE_FAST_UNROLL
      for (int i = 0; i < kSide; ++i) _mm512_storeu_si512(best + (h * kSide + i) * kSide, top[i]);
    }
  }

  // ---- Many steps: squares of two tiles of rows and two of codes, which load half as much
  // --------

  template <bool kBoth>
  VQVAE_FAST_INLINE static void multiply_square(const int32_t* halves, const int32_t* codes,
                                                Int8Words words, const AmxDepth& depth,
                                                const int32_t* starts) {
    Tiles::template load<0>(starts, 0);
    Tiles::template load<1>(starts + kSide, 0);
    if constexpr (kBoth) {
      Tiles::template load<2>(starts, 0);
      Tiles::template load<3>(starts + kSide, 0);
    }
    for (int64_t step = 0; step < depth.steps; ++step) {
      const int32_t* rows = halves + step * kTileWords;
      const int32_t* of_step = codes + (words.wide + depth.first_word(step)) * kSide;
      Tiles::template load<kRowsTile>(rows, kStride);
      Tiles::template load<kCodesTile<2, 0>>(of_step, kStride);
      Tiles::template add_products<0, kRowsTile, kCodesTile<2, 0>>();
      Tiles::template load<kCodesTile<2, 1>>(of_step + words.all * kSide, kStride);
      Tiles::template add_products<1, kRowsTile, kCodesTile<2, 1>>();
      if constexpr (kBoth) {
        Tiles::template load<kRowsTile + 1>(rows + depth.steps * kTileWords, kStride);
        Tiles::template add_products<2, kRowsTile + 1, kCodesTile<2, 0>>();
        Tiles::template add_products<3, kRowsTile + 1, kCodesTile<2, 1>>();
      }
    }
  }

  template <bool kBoth>
  VQVAE_FAST_INLINE static void store_square(int32_t* scores) {
    store_pair<0>(scores);
    if constexpr (kBoth) store_pair<1>(scores + 2 * kTileWords);
  }

  template <bool kWide, bool kBoth>
  VQVAE_FAST_INLINE static void raise_best(const int32_t* scores, const int32_t* wide_rows,
                                           const int32_t* codes, Int8Words words, bool is_first,
                                           int32_t* best) {
    __m512i wide_codes[2 * kWideWords];
    load_wide_codes<kWide>(codes, words, wide_codes);
    for (int64_t half = 0; half < (kBoth ? 2 : 1); ++half) {
      for (int64_t i = 0; i < kSide; ++i) {
        const int64_t r = half * kSide + i;
        __m512i top =
            best_of_pair<kWide>(scores + half * 2 * kTileWords, i, wide_rows + r, wide_codes);
        if (!is_first) top = _mm512_max_epi32(top, _mm512_loadu_si512(best + r * kSide));
        _mm512_storeu_si512(best + r * kSide, top);
      }
    }
  }

  // While the unit multiplies a square, the scores of the one before are read.
  template <bool kWide, bool kBoth>
  VQVAE_FAST_INLINE static void score_tile(const int32_t* tile, float ratio, const int32_t* group,
                                           const float* half_norm, Int8Words words, int32_t* best) {
    alignas(kAlignment) int32_t starts[kGroupCodes], scores[4 * kTileWords];
    const AmxDepth depth(words);
    const auto pair = [&](int64_t p) { return group + p * 2 * words.all * kSide; };
    write_starts(half_norm, ratio, starts);
    for (int64_t p = 0; p <= kGroupPairs; ++p) {
      if (p < kGroupPairs) {
        multiply_square<kBoth>(half_of(tile, words, depth, 0), pair(p), words, depth,
                               starts + p * 2 * kSide);
      }
      if (p > 0) raise_best<kWide, kBoth>(scores, tile, pair(p - 1), words, p == 1, best);
      if (p < kGroupPairs) store_square<kBoth>(scores);
    }
  }

  template <bool kWide>
  VQVAE_FAST_ALONE static void score_squares(const int32_t* tiles, int64_t num_rows,
                                             const float* ratio, const int32_t* group,
                                             const float* half_norm, Int8Words words,
                                             int32_t* best) {
    for (int64_t row = 0; row < num_rows; row += kTileRows) {
      const int32_t* tile = tiles + row * row_words(words);
      const float of_tile = ratio[row / kTileRows];
      int32_t* of_rows = best + row * kSide;
      if (num_rows - row > kSide) {
        score_tile<kWide, true>(tile, of_tile, group, half_norm, words, of_rows);
      } else {
        score_tile<kWide, false>(tile, of_tile, group, half_norm, words, of_rows);
      }
    }
  }
};

}  // namespace
}  // namespace vqvae_fast
