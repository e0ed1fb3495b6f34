// Computes the deciding distances, sum((z - e)^2) in float64, always in the same order of additions
// and without fused multiply-adds. So the bits are those of the CPU's kernels.
#pragma once

#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>

#include "../elements.h"
#include "../rows.h"

namespace vqvae_fast {

constexpr int64_t kNoIndex = INT64_MAX;  // larger than every index
constexpr int64_t kUnsettled = -1;       // the bound could not settle the row

// Found is the nearest code of some range so far.
struct Found {
  double distance;
  int64_t index;
};

namespace {

__device__ __forceinline__ Found nothing_found() { return {HUGE_VAL, kNoIndex}; }

// Returns whether `a` wins over `b`: the smaller distance wins, and the lower index among equals. A
// NaN distance means that the row has a NaN; then every range has found one.
__device__ __forceinline__ bool nearer(const Found& a, const Found& b) {
  if (isnan(b.distance)) return false;
  return isnan(a.distance) || a.distance < b.distance ||
         (a.distance == b.distance && a.index < b.index);
}

__device__ __forceinline__ double add_square(double sum, double difference) {
  return __dadd_rn(sum, __dmul_rn(difference, difference));
}

// Adds eight lanes by halving them three times. Lane l holds the sum of elements l, l + 8, ...
__device__ __forceinline__ double sum_of_lanes(double sum) {
  constexpr unsigned kAll = 0xffffffffu;
  sum = __dadd_rn(sum, __shfl_xor_sync(kAll, sum, 4));
  sum = __dadd_rn(sum, __shfl_xor_sync(kAll, sum, 2));
  return __dadd_rn(sum, __shfl_xor_sync(kAll, sum, 1));
}
__device__ __forceinline__ double sum_of_lanes(const double (&a)[8]) {
  return __dadd_rn(__dadd_rn(__dadd_rn(a[0], a[4]), __dadd_rn(a[2], a[6])),
                   __dadd_rn(__dadd_rn(a[1], a[5]), __dadd_rn(a[3], a[7])));
}

// Measures one code with one thread. This is slow and serves rare cases.
template <class In>
__device__ double measure_alone(const In* z, int64_t z_stride, const In* code, int64_t code_stride,
                                int64_t dim) {
  double sums[8] = {};
  for (int64_t d = 0; d < dim; d += 8) {
#pragma unroll
    for (int l = 0; l < 8; ++l) {
      if (d + l >= dim) break;
      sums[l] = add_square(sums[l], double(widen(z[(d + l) * z_stride])) -
                                        double(widen(code[(d + l) * code_stride])));
    }
  }
  return sum_of_lanes(sums);
}

}  // namespace
}  // namespace vqvae_fast
