// Vectors on their way to integers: less the centre, reflected, rounded. AVX-512.
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#include "../score_bound.h"
#include "contract.h"
#include "int8_book.h"

namespace vqvae_fast {
namespace {

inline __mmask16 first_lanes(int64_t count) {
  return count >= 16 ? __mmask16(0xffff) : __mmask16((1u << count) - 1);
}

// Applies the reflections, one after the other, to kVectors vectors side by side: each is a chain
// of latencies.
template <int kVectors>
inline void reflect_together(const float* reflections, int64_t count, int64_t dim, float* x) {
  const int64_t padded = padded_dim(dim);
  for (int64_t i = 0; i < count; ++i) {
    const float* reflection = reflections + i * padded;
    __m512 product[kVectors];
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kVectors; ++j) product[j] = _mm512_setzero_ps();
    for (int64_t d = 0; d < dim; d += 16) {
      const __m512 v = _mm512_loadu_ps(reflection + d);
      VQVAE_FAST_UNROLL
      for (int j = 0; j < kVectors; ++j) {
        product[j] = _mm512_fmadd_ps(v, _mm512_loadu_ps(x + j * padded + d), product[j]);
      }
    }
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kVectors; ++j) {
      product[j] = _mm512_set1_ps(_mm512_reduce_add_ps(product[j]));
    }
    for (int64_t d = 0; d < dim; d += 16) {
      const __m512 v = _mm512_loadu_ps(reflection + d);
      VQVAE_FAST_UNROLL
      for (int j = 0; j < kVectors; ++j) {
        float* at = x + j * padded + d;
        _mm512_storeu_ps(at, _mm512_fnmadd_ps(v, product[j], _mm512_loadu_ps(at)));
      }
    }
  }
}

// The same for any number of vectors ([vectors][padded D]).
inline void reflect(const float* reflections, int64_t count, int64_t dim, float* x,
                    int64_t vectors) {
  constexpr int kTogether = 4;
  int64_t i = 0;
  for (; i + kTogether <= vectors; i += kTogether) {
    reflect_together<kTogether>(reflections, count, dim, x + i * padded_dim(dim));
  }
  for (; i < vectors; ++i) {
    reflect_together<1>(reflections, count, dim, x + i * padded_dim(dim));
  }
}

// How far a computed reflection of x is from that of an orthogonal matrix, for all reflections
// together and relative to |x|: D/16 + 6 roundings of the product, which is at most 2 |x| after
// it met v twice, those of v, which change its length, and one of the difference.
inline double reflection_error(int64_t count, int64_t dim) {
  return double(count) * double(dim / 8 + 24) * 0x1p-24;
}

inline float largest_magnitude(const float* x, int64_t first, int64_t last) {
  __m512 largest = _mm512_setzero_ps();
  for (int64_t d = first; d < last; d += 16) {
    const __m512 elements = _mm512_maskz_loadu_ps(first_lanes(last - d), x + d);
    largest = _mm512_max_ps(largest, _mm512_abs_ps(elements));
  }
  return _mm512_reduce_max_ps(largest);
}

inline Int8Extent extent_of(const float* x, int64_t num_wide, int64_t dim) {
  return {largest_magnitude(x, 0, num_wide), largest_magnitude(x, num_wide, dim)};
}

// The unit that such vectors need.
inline double unit_for(const Int8Extent& extent) {
  return larger(double(extent.narrow) / 127, double(extent.wide) / 32767);
}

// Sums of squares of a part, and of what its integers are short of.
struct PartSquares {
  float all, rest;
};

// Elements [first, last) of x as integers: narrow(q, d) stores sixteen of them.
template <class Store>
inline PartSquares quantize_part(const float* x, int64_t first, int64_t last, float unit,
                                 float per_unit, Store store) {
  const __m512 units = _mm512_set1_ps(unit), per_units = _mm512_set1_ps(per_unit);
  __m512 squares = _mm512_setzero_ps(), rest_squares = _mm512_setzero_ps();
  for (int64_t d = first; d < last; d += 16) {
    const __m512 elements = _mm512_maskz_loadu_ps(first_lanes(last - d), x + d);
    const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(elements, per_units));
    const __m512 rest = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(q), units, elements);
    squares = _mm512_fmadd_ps(elements, elements, squares);
    rest_squares = _mm512_fmadd_ps(rest, rest, rest_squares);
    store(q, d - first);
  }
  return {_mm512_reduce_add_ps(squares), _mm512_reduce_add_ps(rest_squares)};
}

// Writes `count` words of four, `stride` words apart.
inline void scatter_words(__m128i words, int32_t* out, int64_t stride, int64_t count) {
  if (count > 0) out[0] = _mm_extract_epi32(words, 0);
  if (count > 1) out[stride] = _mm_extract_epi32(words, 1);
  if (count > 2) out[2 * stride] = _mm_extract_epi32(words, 2);
  if (count > 3) out[3 * stride] = _mm_extract_epi32(words, 3);
}

struct Quantized {
  PartSquares wide, narrow;
  int32_t narrow_sum;  // of the integers of 8 bits
};

// Quantizes x into words `stride` apart. `flip` is exclusive-ored to the 8-bit integers: 0x80 adds
// 128.
inline Quantized quantize(const float* x, int64_t num_wide, int64_t dim, float unit, float per_unit,
                          uint8_t flip, int32_t* out, int64_t stride) {
  Quantized result;
  result.wide = quantize_part(x, 0, num_wide, unit, per_unit, [&](__m512i q, int64_t) {
    static_assert(kWideDims == 8, "four words of 16 bits");
    scatter_words(_mm256_castsi256_si128(_mm512_cvtsepi32_epi16(q)), out, stride, 4);
  });
  int32_t* narrow = out + num_wide / 2 * stride;
  const int64_t words = (dim - num_wide + 3) / 4;
  const __m128i flips = _mm_set1_epi8(char(flip));
  __m512i sum = _mm512_setzero_si512();
  result.narrow = quantize_part(x, num_wide, dim, unit, per_unit, [&](__m512i q, int64_t d) {
    sum = _mm512_add_epi32(sum, q);
    scatter_words(_mm_xor_si128(_mm512_cvtsepi32_epi8(q), flips), narrow + d / 4 * stride, stride,
                  words - d / 4);
  });
  result.narrow_sum = _mm512_reduce_add_epi32(sum);
  return result;
}

// What a float32 sum of squares in 16 lanes may be short of, as a factor on its root.
inline double root_error(int64_t dim) { return 1 + double(dim / 16 + 8) * 0x1p-24; }

// More than the root of up to 4096 squares that were flushed to zero; units are far above it.
constexpr double kLostToUnderflow = 0x1p-56;

// What is known of a vector of that norm. To subtract the centre rounded each element once.
inline Int8Sizes sizes_of(const Quantized& quantized, double norm, int64_t num_wide, int64_t dim) {
  const double root = root_error(dim);
  const double lost = (0x1p-23 + reflection_error(num_wide, dim)) * norm + kLostToUnderflow;
  const auto most = [&](float square) { return sqrt(double(square)) * root + lost; };
  Int8Sizes sizes{norm, 0, most(quantized.narrow.all), 0, most(quantized.narrow.rest)};
  if (num_wide > 0) {
    sizes.wide = most(quantized.wide.all);
    sizes.wide_error = most(quantized.wide.rest);
  }
  return sizes;
}

}  // namespace
}  // namespace vqvae_fast
