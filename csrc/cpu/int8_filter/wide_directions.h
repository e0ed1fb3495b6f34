// The few directions in which a codebook is far wider than in all others, as those of trained
// models often are. AVX-512.
//
// In 8 bits the widest direction decides how coarse all integers are. Reflections turn the widest
// ones into the first dimensions, which then get 16 bits.
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#include "../../rows.h"
#include "../contract.h"
#include "book.h"
#include "quantize.h"

namespace vqvae_fast {
namespace {

constexpr int64_t kWideSamples = 64;
// The share of the samples' squares that may remain in the other dimensions. Random samples of an
// isotropic distribution leave a third or more.
constexpr float kMostRemaining = 1.0f / 8;
// Beside so few dimensions, 8 of 16 bits cost too much.
constexpr int64_t kSmallestDimWithWide = 16;

struct WideScratch {
  float* samples;      // [4] times 16 codes abreast, less the centre
  double* directions;  // [D][8]

  WideScratch(int64_t dim, void* scratch)
      : samples(static_cast<float*>(scratch)),
        directions(reinterpret_cast<double*>(sixteen(dim, kWideSamples / kAbreast))) {}

  float* sixteen(int64_t dim, int64_t number) const {
    return samples + number * padded_dim(dim) * kAbreast;
  }
  static int64_t bytes(int64_t dim) {
    return kWideSamples / kAbreast * abreast_bytes(dim) + dim * kWideDims * int64_t{sizeof(double)};
  }
};

// One step of the power iteration for the samples' covariance, from some of the samples: their
// span comes close to that of the widest directions. Its scale is that of the samples.
inline void span_widest(const WideScratch& scratch, int64_t dim) {
  constexpr int64_t kSixteens = kWideSamples / kAbreast;
  __m512 products[kSixteens][kWideDims];  // of samples and starts
  __m512 largest = _mm512_setzero_ps();
  for (int64_t s = 0; s < kSixteens; ++s) {
    const float* samples = scratch.sixteen(dim, s);
    for (int64_t i = 0; i < kWideDims; ++i) {
      const int64_t start = kWideSamples / kWideDims * i;
      const float* of_start = scratch.sixteen(dim, start / kAbreast) + start % kAbreast;
      __m512 sum = _mm512_setzero_ps();
      for (int64_t d = 0; d < dim; ++d) {
        sum = _mm512_fmadd_ps(_mm512_loadu_ps(samples + d * kAbreast),
                              _mm512_set1_ps(of_start[d * kAbreast]), sum);
      }
      products[s][i] = sum;
      largest = _mm512_max_ps(largest, _mm512_abs_ps(sum));
    }
  }
  const float scale = 1 / _mm512_reduce_max_ps(largest);
  for (int64_t d = 0; d < dim; ++d) {
    for (int64_t i = 0; i < kWideDims; ++i) {
      __m512 sum = _mm512_setzero_ps();
      for (int64_t s = 0; s < kSixteens; ++s) {
        const __m512 share = _mm512_mul_ps(products[s][i], _mm512_set1_ps(scale));
        sum = _mm512_fmadd_ps(_mm512_loadu_ps(scratch.sixteen(dim, s) + d * kAbreast), share, sum);
      }
      scratch.directions[d * kWideDims + i] = double(_mm512_reduce_add_ps(sum));
    }
  }
}

static_assert(kWideDims == 8, "a vector of float64 holds a number for each direction");

inline __m512d all_of(float element) { return _mm512_set1_pd(double(element)); }

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

// The products of neighbours among them.
inline void find_overlaps(int64_t dim, float* reflections) {
  const int64_t padded = padded_dim(dim);
  float* overlaps = reflections + kWideDims * padded;
  for (int64_t i = 0; i < kWideDims; i += 2) {
    const float* v = reflections + i * padded;
    __m512d sum = _mm512_setzero_pd();
    for (int64_t d = 0; d < padded; d += 8) {
      sum = _mm512_fmadd_pd(_mm512_cvtps_pd(_mm256_loadu_ps(v + d)),
                            _mm512_cvtps_pd(_mm256_loadu_ps(v + padded + d)), sum);
    }
    overlaps[i / 2] = float(_mm512_reduce_add_pd(sum));
  }
}

// The samples' squares in dimensions [first, D).
inline float squares_from(const WideScratch& scratch, int64_t dim, int64_t first) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t s = 0; s < kWideSamples / kAbreast; ++s) {
    for (int64_t d = first; d < dim; ++d) {
      const __m512 elements = _mm512_loadu_ps(scratch.sixteen(dim, s) + d * kAbreast);
      sum = _mm512_fmadd_ps(elements, elements, sum);
    }
  }
  return _mm512_reduce_add_ps(sum);
}

template <class In>
int64_t find_wide(const ListedCodes<In>& codes, const float* centre, void* memory,
                  float* reflections) {
  const int64_t dim = codes.dim;
  if (dim < kSmallestDimWithWide) return 0;
  const WideScratch scratch(dim, memory);
  for (int64_t s = 0; s < kWideSamples / kAbreast; ++s) {
    float* x = scratch.sixteen(dim, s);
    const In* sixteen[kAbreast];
    for (int64_t l = 0; l < kAbreast; ++l) {
      sixteen[l] = codes.row(codes.count * (s * kAbreast + l) / kWideSamples);
    }
    const __mmask16 in_range =
        subtract_centre(sixteen, codes.element_stride, centre, dim, x).in_range;
    for (int64_t d = 0; d < dim; ++d) {  // the others would spoil all directions
      float* at = x + d * kAbreast;
      _mm512_storeu_ps(at, _mm512_maskz_loadu_ps(in_range, at));
    }
  }
  span_widest(scratch, dim);
  reflections_of(scratch.directions, dim, reflections);
  find_overlaps(dim, reflections);
  const float all = squares_from(scratch, dim, 0);
  for (int64_t s = 0; s < kWideSamples / kAbreast; ++s) {
    reflect(reflections, kWideDims, dim, scratch.sixteen(dim, s));
  }
  return squares_from(scratch, dim, kWideDims) < kMostRemaining * all ? kWideDims : 0;
}

}  // namespace
}  // namespace vqvae_fast
