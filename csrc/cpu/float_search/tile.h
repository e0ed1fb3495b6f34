// This file has the inner loops: they score a tile of rows against a panel of codes and keep the
// best.
#pragma once

#include <stdint.h>

#include "block.h"

namespace vqvae_fast {
namespace {

// Scores holds the scores of one tile: kTileRows rows against the first kVecs vectors of a panel.
// Another matrix may take the place of the panel: then they are products.
template <class Simd, int kVecs>
struct Scores {
  typename Simd::Vec at[Simd::kTileRows][kVecs];
};

// Returns an element of a row as a factor of vectors. Some instruction sets multiply by a number
// that lies in no vector.
template <class Simd>
inline auto factor_of(typename Simd::T element) {
  if constexpr (requires { Simd::factor(element); }) {
    return Simd::factor(element);
  } else {
    return Simd::broadcast(element);
  }
}

template <class Simd, int kVecs>
inline void score_tile(Scores<Simd, kVecs>& scores, const typename Simd::T* rows,
                       int64_t row_stride, const typename Simd::T* panel,
                       const typename Simd::T* half_norm, int64_t dim, int64_t element_stride = 1,
                       int64_t panel_stride = Simd::kTileCodes) {
  using Vec = typename Simd::Vec;
  VQVAE_FAST_UNROLL
  for (int j = 0; j < kVecs; ++j) {
    VQVAE_FAST_UNROLL
    for (int i = 0; i < Simd::kTileRows; ++i) {
      scores.at[i][j] = Simd::load(half_norm + j * Simd::kWidth);
    }
  }
  for (int64_t d = 0; d < dim; ++d) {
    Vec codes[kVecs];
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kVecs; ++j) codes[j] = Simd::load(panel + j * Simd::kWidth);
    VQVAE_FAST_UNROLL
    for (int i = 0; i < Simd::kTileRows; ++i) {
      const auto z = factor_of<Simd>(rows[i * row_stride]);
      VQVAE_FAST_UNROLL
      for (int j = 0; j < kVecs; ++j) {
        scores.at[i][j] = Simd::multiply_add(z, codes[j], scores.at[i][j]);
      }
    }
    panel += panel_stride;
    rows += element_stride;
  }
}

// Takes the first look at one panel. It reduces the codes that share a lane to their maximum before
// it compares them with the running best, and measure_lane() measures all of them: so a vector of
// scores costs two instructions, the second best included. The last panel may be filled in part,
// because 2^n codes are never a multiple of three vectors.
template <class Simd, int kVecs>
VQVAE_FAST_ALONE void keep_best(const Block<Simd>& block, int64_t num_tiles,
                                const typename Simd::T* panel, const typename Simd::T* half_norm,
                                int64_t panel_in_pass, int64_t dim) {
  using Vec = typename Simd::Vec;
  const typename Simd::T* rows = block.centred;
  const int64_t row_stride = block.row_stride;
  typename Simd::T* state = block.state;
  typename Simd::Mask* rose = block.rose + panel_in_pass * block.rows;
  for (int64_t tile = 0; tile < num_tiles; ++tile, rows += Simd::kTileRows * row_stride) {
    Scores<Simd, kVecs> scores;
    score_tile<Simd, kVecs>(scores, rows, row_stride, panel, half_norm, dim);
    VQVAE_FAST_UNROLL
    for (int i = 0; i < Simd::kTileRows; ++i, state += Block<Simd>::kStateSize) {
      Vec top = scores.at[i][0];
      VQVAE_FAST_UNROLL
      for (int j = 1; j < kVecs; ++j) top = Simd::max(top, scores.at[i][j]);
      const Vec best = Simd::load(state);
      const Vec second = Simd::load(state + Simd::kWidth);
      *rose++ = Simd::greater(top, best);
      Simd::store(state, Simd::max(best, top));
      Simd::store(state + Simd::kWidth, Simd::max(second, Simd::min(top, best)));
    }
  }
}

template <class Simd>
VQVAE_FAST_ALONE void store_scores(typename Simd::T* out, const typename Simd::T* rows,
                                   int64_t row_stride, const typename Simd::T* panel,
                                   const typename Simd::T* half_norm, int64_t dim) {
  Scores<Simd, Simd::kTileVecs> scores;
  score_tile<Simd, Simd::kTileVecs>(scores, rows, row_stride, panel, half_norm, dim);
  VQVAE_FAST_UNROLL
  for (int i = 0; i < Simd::kTileRows; ++i) {
    VQVAE_FAST_UNROLL
    for (int j = 0; j < Simd::kTileVecs; ++j) {
      Simd::store(out + i * Simd::kTileCodes + j * Simd::kWidth, scores.at[i][j]);
    }
  }
}

}  // namespace
}  // namespace vqvae_fast
