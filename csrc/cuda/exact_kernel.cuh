// Measures every code in float64, for float64 inputs and for unsettled rows. Only the device knows
// how many rows those are, so a grid of fixed size shares them out.
#pragma once

#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>

#include "../elements.h"
#include "../rows.h"
#include "distance.cuh"

namespace vqvae_fast {

struct ExactTile {
  static constexpr int kThreads = 128;  // a code each
  static constexpr int kRows = 4;
  static constexpr int kDepth = 8;  // as many as a distance has lanes
};

// RowList names the rows to measure: those on the list, or all.
struct RowList {
  const int64_t* rows;   // null: all rows
  const int64_t* count;  // on the device; null: all rows
  int64_t all;

  __device__ __forceinline__ int64_t size() const { return count == nullptr ? all : *count; }
  __device__ __forceinline__ int64_t row(int64_t place) const {
    return rows == nullptr ? place : rows[place];
  }
  // Returns into how many parts the codes are divided, so that few rows fill a grid of so many
  // blocks. Each row then has that many answers, in order; in total there are at most max(all,
  // kRows * blocks).
  __device__ __forceinline__ int64_t parts(int64_t num_codes, int64_t blocks) const {
    const int64_t groups = (size() + ExactTile::kRows - 1) / ExactTile::kRows;
    const int64_t tiles = (num_codes + ExactTile::kThreads - 1) / ExactTile::kThreads;
    const int64_t wanted = groups > 0 ? blocks / groups : 1;
    return wanted < 1 ? 1 : (wanted < tiles ? wanted : tiles);
  }
};

namespace {

// Until a listed row has its answer, its index holds its place on the list, as a negative number.
__device__ __forceinline__ int64_t listed_at(int64_t place) { return -1 - place; }
__device__ __forceinline__ bool is_listed(int64_t index) { return index < 0; }
__device__ __forceinline__ int64_t place_on_list(int64_t index) { return -1 - index; }

// Measures every code; a block takes four rows and a part of the codes at a time. found:
// [list][parts].
template <class In>
__global__ void __launch_bounds__(ExactTile::kThreads)
    measure_all(Rows<const In> z, Codes<In> codes, RowList list, Found* found) {
  constexpr int kRows = ExactTile::kRows, kDepth = ExactTile::kDepth;
  constexpr int kCodes = ExactTile::kThreads;
  __shared__ double row_stage[kRows][kDepth];
  __shared__ double code_stage[kDepth][kCodes + 1];
  __shared__ Found best[kCodes];
  const int t = static_cast<int>(threadIdx.x);
  const bool along_codes = codes.element_stride != 1;
  const int64_t size = list.size(), parts = list.parts(codes.count, gridDim.x);
  const int64_t tiles = (codes.count + kCodes - 1) / kCodes;
  const int64_t items = (size + kRows - 1) / kRows * parts;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t place = item / parts * kRows, part = item % parts;
    Found nearest[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) nearest[r] = nothing_found();
    const int64_t last = tiles * (part + 1) / parts;
    for (int64_t tile = tiles * part / parts; tile < last; ++tile) {
      const int64_t first = tile * kCodes, k = first + t;
      double sums[kRows][kDepth] = {};
      bool usable = k < codes.count;
      for (int64_t from = 0; from < z.dim; from += kDepth) {
        __syncthreads();
        // Zeros stand in for elements past the last: they add nothing.
        if (t < kRows * kDepth) {
          const int r = t / kDepth, d = t % kDepth;
          const bool inside = place + r < size && from + d < z.dim;
          row_stage[r][d] =
              inside ? double(widen(z.row(list.row(place + r))[(from + d) * z.element_stride])) : 0;
        }
        for (int i = t; i < kDepth * kCodes; i += kCodes) {
          const int d = along_codes ? i / kCodes : i % kDepth;
          const int c = along_codes ? i % kCodes : i / kDepth;
          const bool inside = first + c < codes.count && from + d < z.dim;
          code_stage[d][c] =
              inside ? double(widen(codes.row(first + c)[(from + d) * codes.element_stride])) : 0;
        }
        __syncthreads();
#pragma unroll
        for (int d = 0; d < kDepth; ++d) {
          const double e = code_stage[d][t];
          usable &= isfinite(e) != 0;
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            sums[r][d] = add_square(sums[r][d], __dadd_rn(row_stage[r][d], -e));
          }
        }
      }
      // If the code is finite, the distance is NaN only for a row with a NaN.
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const double distance = sum_of_lanes(sums[r]);
        const Found other{distance, isnan(distance) ? 0 : k};
        if (usable && nearer(other, nearest[r])) nearest[r] = other;
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      __syncthreads();
      best[t] = nearest[r];
      for (int half = kCodes / 2; half > 0; half /= 2) {
        __syncthreads();
        if (t < half && nearer(best[t + half], best[t])) best[t] = best[t + half];
      }
      if (t == 0 && place + r < size) found[(place + r) * parts + part] = best[0];
    }
  }
}

}  // namespace
}  // namespace vqvae_fast
