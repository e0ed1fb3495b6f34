// Finishes a search: writes the answers of the rows that were measured against all codes, and
// gathers the chosen codes of all rows.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include "exact_kernel.cuh"

namespace vqvae_fast {
namespace {

constexpr int kFinishRows = 128;  // a thread each

// Finishes some rows with one block. found: [list][parts] as measure_all wrote it with
// `exact_blocks` blocks. indices: as collect wrote them, or anything if all rows are listed.
// quantized.data may be null.
template <class In>
__global__ void __launch_bounds__(kFinishRows)
    finish(Rows<const In> z, Codes<In> codes, RowList list, int64_t exact_blocks,
           const Found* found, int64_t* indices, Compute<In>* distances, Rows<In> quantized) {
  __shared__ int64_t chosen[kFinishRows];
  const int t = static_cast<int>(threadIdx.x);
  const int64_t first = int64_t{blockIdx.x} * kFinishRows, n = first + t;
  if (n < z.count) {
    int64_t index = list.rows == nullptr ? listed_at(n) : indices[n];
    if (is_listed(index)) {
      const int64_t parts = list.parts(codes.count, exact_blocks);
      const Found* mine = found + place_on_list(index) * parts;
      Found nearest = mine[0];
      for (int64_t part = 1; part < parts; ++part) {
        if (nearer(mine[part], nearest)) nearest = mine[part];
      }
      if (nearest.index == kNoIndex) {  // every code has a NaN or an infinity: the first is taken
        nearest = {
            measure_alone(z.row(n), z.element_stride, codes.row(0), codes.element_stride, z.dim),
            0};
      }
      index = nearest.index;
      indices[n] = index;
      distances[n] = static_cast<Compute<In>>(nearest.distance);
    }
    chosen[t] = index;
  }
  if (quantized.data == nullptr) return;
  __syncthreads();
  // Neighbouring threads write neighbouring memory: elements of one row, or of neighbouring rows.
  int across = kFinishRows;
  if (quantized.element_stride == 1) {
    while (across / 2 >= z.dim) across /= 2;
  } else {
    across = 1;
  }
  const int rows = kFinishRows / across;
  const int64_t left = z.count - first;
  const int count = left < kFinishRows ? static_cast<int>(left) : kFinishRows;
  for (int r = t / across; r < count; r += rows) {
    const In* code = codes.row(chosen[r]);
    In* row = quantized.row(first + r);
    for (int64_t d = t % across; d < z.dim; d += across) {
      row[d * quantized.element_stride] = code[d * codes.element_stride];
    }
  }
}

}  // namespace
}  // namespace vqvae_fast
