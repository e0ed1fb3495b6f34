// Multiplies rows with a matrix, by the tile of the search.
#pragma once

#include <stdint.h>
#include <string.h>

#include "../contract.h"
#include "tile.h"

namespace vqvae_fast {
namespace {

// Rows a power of two apart would share cache sets.
template <class Simd>
constexpr int64_t stride_of_copies(int64_t dim) {
  return dim + kAlignment / int64_t(sizeof(typename Simd::T));
}

template <class Simd>
int64_t multiply_scratch_bytes(int64_t dim) {
  return Simd::kTileRows * stride_of_copies<Simd>(dim) * int64_t(sizeof(typename Simd::T));
}

template <class Simd, int kVecs>
VQVAE_FAST_ALONE void multiply_tile(typename Simd::T* out, const typename Simd::T* rows,
                                    int64_t row_stride, int64_t element_stride,
                                    const Affine<typename Simd::T>& map, int64_t column) {
  Scores<Simd, kVecs> products;
  score_tile<Simd, kVecs>(products, rows, row_stride, map.matrix + column, map.start + column,
                          map.dim, element_stride, map.stride);
  VQVAE_FAST_UNROLL
  for (int i = 0; i < Simd::kTileRows; ++i) {
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kVecs; ++j) {
      Simd::store(out + i * Simd::kTileCodes + j * Simd::kWidth, products.at[i][j]);
    }
  }
}

// MapTile is a tile of rows as the products read it.
template <class T>
struct MapTile {
  const T* rows;
  int64_t row_stride, element_stride;
};

// Returns rows [row, row + count). A tile that is not whole, or whose rows are not evenly apart, is
// copied to `copies`; zeros fill it.
template <class Simd>
MapTile<typename Simd::T> tile_of(const Rows<const typename Simd::T>& rows, int64_t row,
                                  int64_t count, typename Simd::T* copies) {
  using T = typename Simd::T;
  const T* first = rows.row(row);
  const bool is_even = rows.row(row + count - 1) == first + (count - 1) * rows.row_stride;
  if (is_even && count == Simd::kTileRows) return {first, rows.row_stride, rows.element_stride};
  const int64_t stride = stride_of_copies<Simd>(rows.dim);
  for (int64_t i = 0; i < count; ++i) {
    const T* from = rows.row(row + i);
    for (int64_t d = 0; d < rows.dim; ++d) copies[i * stride + d] = from[d * rows.element_stride];
  }
  memset(copies + count * stride, 0, (Simd::kTileRows - count) * stride * sizeof(T));
  return {copies, stride, 1};
}

// The rows meet a few columns together, because the matrix may be larger than the caches: it is
// read once, and the rows once for each few columns.
template <class Simd>
void multiply(const Rows<const typename Simd::T>& rows, int64_t first_row, int64_t last_row,
              const Affine<typename Simd::T>& map, void* scratch, typename Simd::T* out) {
  using T = typename Simd::T;
  static_assert(kMapColumns % Simd::kWidth == 0, "the last vector of columns is readable");
  alignas(kAlignment) T products[Simd::kTileRows * Simd::kTileCodes];
  for (int64_t column = 0; column < map.columns; column += Simd::kTileCodes) {
    const int64_t columns = smaller(Simd::kTileCodes, map.columns - column);
    const int64_t vecs = (columns + Simd::kWidth - 1) / Simd::kWidth;
    const auto multiply_tile_of = vecs == 1   ? multiply_tile<Simd, 1>
                                  : vecs == 2 ? multiply_tile<Simd, 2>
                                              : multiply_tile<Simd, Simd::kTileVecs>;
    for (int64_t row = first_row; row < last_row; row += Simd::kTileRows) {
      const int64_t count = smaller(Simd::kTileRows, last_row - row);
      const auto tile = tile_of<Simd>(rows, row, count, static_cast<T*>(scratch));
      multiply_tile_of(products, tile.rows, tile.row_stride, tile.element_stride, map, column);
      for (int64_t i = 0; i < count; ++i) {
        memcpy(out + (row - first_row + i) * map.columns + column, products + i * Simd::kTileCodes,
               columns * sizeof(T));
      }
    }
  }
}

}  // namespace
}  // namespace vqvae_fast
