// The few directions in which a codebook is far wider than in all others, as those of trained
// models often are. AVX-512.
//
// In 8 bits the widest direction decides how coarse all integers are. Reflections turn the widest
// ones into the first dimensions, which then get 16 bits.
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#include "../rows.h"
#include "contract.h"
#include "int8_book.h"
#include "int8_pack.h"
#include "int8_quantize.h"

namespace vqvae_fast {
namespace {

constexpr int64_t kWideSamples = 64;
// The share of the samples' squares that may remain in the other dimensions. Random samples of an
// isotropic distribution leave a third or more.
constexpr double kMostRemaining = 1.0 / 8;
// Beside so few dimensions, 8 of 16 bits cost too much.
constexpr int64_t kSmallestDimWithWide = 16;

struct WideScratch {
  float* samples;      // [64][padded D]: codes less the centre
  double* directions;  // [D][8]

  WideScratch(int64_t dim, void* scratch)
      : samples(static_cast<float*>(scratch)),
        directions(reinterpret_cast<double*>(samples + kWideSamples * padded_dim(dim))) {}

  static int64_t bytes(int64_t dim) {
    return kWideSamples * padded_dim(dim) * int64_t{sizeof(float)} +
           dim * kWideDims * int64_t{sizeof(double)};
  }
};

static_assert(kWideDims == 8, "a vector of float64 holds a number for each direction");

inline __m512d all_of(float element) { return _mm512_set1_pd(double(element)); }

// One step of the power iteration for the samples' covariance, from some of the samples: their
// span comes close to that of the widest directions.
inline void span_widest(const float* samples, int64_t count, int64_t dim, double* directions) {
  const int64_t padded = padded_dim(dim);
  for (int64_t d = 0; d < dim; ++d)
    _mm512_storeu_pd(directions + d * kWideDims, _mm512_setzero_pd());
  const float* start[kWideDims];
  for (int64_t i = 0; i < kWideDims; ++i) start[i] = samples + count * i / kWideDims * padded;
  for (int64_t s = 0; s < count; ++s) {
    const float* sample = samples + s * padded;
    double products[kWideDims];
    for (int64_t i = 0; i < kWideDims; ++i) {
      __m512d sum = _mm512_setzero_pd();
      for (int64_t d = 0; d < dim; d += 8) {  // zeros behind the last
        sum = _mm512_fmadd_pd(_mm512_cvtps_pd(_mm256_loadu_ps(sample + d)),
                              _mm512_cvtps_pd(_mm256_loadu_ps(start[i] + d)), sum);
      }
      products[i] = _mm512_reduce_add_pd(sum);
    }
    const __m512d of_starts = _mm512_loadu_pd(products);
    for (int64_t d = 0; d < dim; ++d) {
      double* direction = directions + d * kWideDims;
      _mm512_storeu_pd(direction,
                       _mm512_fmadd_pd(all_of(sample[d]), of_starts, _mm512_loadu_pd(direction)));
    }
  }
}

// Householder's triangularisation: the reflections that take the directions' span to that of the
// first dimensions. One that is not needed is zeros.
inline void reflections_of(double* directions, int64_t dim, float* reflections) {
  const int64_t padded = padded_dim(dim);
  for (int64_t i = 0; i < kWideDims; ++i) {
    float* reflection = reflections + i * padded;
    for (int64_t d = 0; d < padded; ++d) reflection[d] = 0;
    double square = 0;
    for (int64_t d = i; d < dim; ++d) {
      const double element = directions[d * kWideDims + i];
      square += element * element;
    }
    const double first = directions[i * kWideDims + i];
    const double moved = first + copysign(sqrt(square), first);
    const double length = sqrt(0.5 * (square - first * first + moved * moved));
    if (!(length > 0 && length < kInfinity)) continue;
    __m512d products = _mm512_setzero_pd();
    for (int64_t d = i; d < dim; ++d) {
      const double element = d == i ? moved : directions[d * kWideDims + i];
      reflection[d] = float(element / length);
      products = _mm512_fmadd_pd(all_of(reflection[d]), _mm512_loadu_pd(directions + d * kWideDims),
                                 products);
    }
    for (int64_t d = i; d < dim; ++d) {
      double* direction = directions + d * kWideDims;
      _mm512_storeu_pd(
          direction, _mm512_fnmadd_pd(all_of(reflection[d]), products, _mm512_loadu_pd(direction)));
    }
  }
}

// The squares of dimensions [first, D).
inline double squares_from(const float* samples, int64_t count, int64_t dim, int64_t first) {
  double sum = 0;
  for (int64_t s = 0; s < count; ++s) {
    const float* sample = samples + s * padded_dim(dim);
    for (int64_t d = first; d < dim; ++d) sum += double(sample[d]) * double(sample[d]);
  }
  return sum;
}

template <class In>
int64_t find_wide(const Codes<In>& codes, const float* centre, void* memory, float* reflections) {
  const int64_t dim = codes.dim, padded = padded_dim(dim);
  if (dim < kSmallestDimWithWide) return 0;
  const WideScratch scratch(dim, memory);
  int64_t count = 0;
  for (int64_t s = 0; s < kWideSamples; ++s) {
    float* sample = scratch.samples + count * padded;
    count += centre_code(codes, centre, codes.count * s / kWideSamples, sample).finite;
  }
  if (count < kWideDims) return 0;
  span_widest(scratch.samples, count, dim, scratch.directions);
  reflections_of(scratch.directions, dim, reflections);
  const double all = squares_from(scratch.samples, count, dim, 0);
  reflect(reflections, kWideDims, dim, scratch.samples, count);
  const double remaining = squares_from(scratch.samples, count, dim, kWideDims);
  return remaining < kMostRemaining * all ? kWideDims : 0;
}

}  // namespace
}  // namespace vqvae_fast
