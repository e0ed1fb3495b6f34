// Sums a few rows in float64, element by element in the rows' order, so that every instruction set
// returns the same bits.
#pragma once

#include <stdint.h>

#include "../../elements.h"
#include "../contract.h"
#include "../exact.h"
#include "../prefetch.h"

namespace vqvae_fast {
namespace {

// The rows of a segment are scattered in memory, so no hardware prefetcher finds the next. The
// kernel prefetches this many rows ahead.
constexpr int64_t kRowsAhead = 24;

// Computes elements [d, d + 8 kVectors) of the sum, or fewer at the end of a row.
template <class Doubles, int kVectors, bool kEnd, class In>
inline void sum_columns(const Rows<const In>& src, const int64_t* rows, int64_t count, int64_t d,
                        double* sum) {
  const int64_t dim = src.dim;
  typename Doubles::Vec sums[kVectors];
  VQVAE_FAST_UNROLL
  for (int j = 0; j < kVectors; ++j) sums[j] = Doubles::zero();
  for (int64_t i = 0; i < count; ++i) {
    const In* row = src.row(rows[i]) + d;
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kVectors; ++j) {
      const int64_t left = kEnd ? dim - d - 8 * j : 8;
      sums[j] = Doubles::add(sums[j], load_lanes<Doubles>(row + 8 * j, 1, left));
    }
  }
  VQVAE_FAST_UNROLL
  for (int j = 0; j < kVectors; ++j) Doubles::store(sum + d + 8 * j, sums[j]);
}

// Writes the sum of the listed rows to sum: [D, rounded up to a multiple of 8]. The elements of a
// row are contiguous.
template <class Simd, class In>
void sum_rows(const Rows<const In>& src, const int64_t* rows, int64_t count, int64_t ahead,
              double* sum) {
  using Doubles = typename Simd::Doubles;
  const Rows<const In> local = src;  // a copy stays in registers: no write can alias it
  const int64_t last = smaller(count + kRowsAhead, count + ahead);
  for (int64_t i = kRowsAhead; i < last; ++i) prefetch_row(local.row(rows[i]), local.dim);
  int64_t d = 0;
  for (; d + 64 <= local.dim; d += 64) sum_columns<Doubles, 8, false>(local, rows, count, d, sum);
  for (; d < local.dim; d += 8) sum_columns<Doubles, 1, true>(local, rows, count, d, sum);
}

}  // namespace
}  // namespace vqvae_fast
