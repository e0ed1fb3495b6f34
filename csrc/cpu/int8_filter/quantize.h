// Sixteen vectors abreast on their way to integers: less the centre, reflected, rounded. AVX-512.
//
// Element d of vector l lies at x[d * 16 + l], so that nothing is summed across lanes.
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#include "../../elements.h"
#include "../../score_bound.h"
#include "../contract.h"
#include "book.h"

namespace vqvae_fast {
namespace {

constexpr int64_t kAbreast = 16;

// Elements beyond this, less the centre, are left to float32.
constexpr float kInt8Largest = 0x1p60f;

inline int64_t abreast_bytes(int64_t dim) {
  return padded_dim(dim) * kAbreast * int64_t{sizeof(float)};
}

inline __mmask16 first_lanes(int64_t count) {
  return count >= 16 ? __mmask16(0xffff) : __mmask16((1u << count) - 1);
}

inline __m512 load_widened(__mmask16 lanes, const float* p) {
  return _mm512_maskz_loadu_ps(lanes, p);
}
inline __m512 load_widened(__mmask16 lanes, const BFloat16* p) {
  const __m256i bits = _mm256_maskz_loadu_epi16(lanes, p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline __m512 load_widened(__mmask16 lanes, const Half* p) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, p));
}

// Elements that do not lie side by side.
template <class In>
VQVAE_FAST_ALONE __m512 load_strided(int64_t count, const In* p, int64_t stride) {
  float elements[16] = {};
  for (int64_t i = 0; i < smaller(16, count); ++i) elements[i] = widen(p[i * stride]);
  return _mm512_loadu_ps(elements);
}

// Sixteen vectors of sixteen elements each become sixteen elements of all vectors.
inline void transpose(__m512 (&v)[16]) {
  __m512 pairs[16];
  VQVAE_FAST_UNROLL
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
  const auto unpack = [](__m512 a, __m512 b, auto halves) {
    return _mm512_castpd_ps(halves(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  };
  const auto low = [](__m512d a, __m512d b) { return _mm512_unpacklo_pd(a, b); };
  const auto high = [](__m512d a, __m512d b) { return _mm512_unpackhi_pd(a, b); };
  VQVAE_FAST_UNROLL
  for (int i = 0; i < 16; i += 4) {
    v[i] = unpack(pairs[i], pairs[i + 2], low);
    v[i + 1] = unpack(pairs[i], pairs[i + 2], high);
    v[i + 2] = unpack(pairs[i + 1], pairs[i + 3], low);
    v[i + 3] = unpack(pairs[i + 1], pairs[i + 3], high);
  }
  // Quarter b of v[4 g + j] has element 4 b + j of vectors 4 g ... 4 g + 3.
  VQVAE_FAST_UNROLL
  for (int j = 0; j < 4; ++j) {
    const __m512 even_low = _mm512_shuffle_f32x4(v[j], v[4 + j], 0x88);
    const __m512 odd_low = _mm512_shuffle_f32x4(v[j], v[4 + j], 0xdd);
    const __m512 even_high = _mm512_shuffle_f32x4(v[8 + j], v[12 + j], 0x88);
    const __m512 odd_high = _mm512_shuffle_f32x4(v[8 + j], v[12 + j], 0xdd);
    v[j] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    v[4 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    v[8 + j] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    v[12 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}

// What subtracting the centre tells of the vectors.
struct Centred {
  __m512d low_squares, high_squares;  // squared norms, of unrounded differences
  __mmask16 in_range;                 // whose elements are at most kInt8Largest

  __m512 squares() const {
    const __m512 low = _mm512_castps256_ps512(_mm512_cvtpd_ps(low_squares));
    return _mm512_insertf32x8(low, _mm512_cvtpd_ps(high_squares), 1);
  }
};

// Vectors less the centre ([padded D], zeros behind the last element) to x.
template <class In>
inline Centred subtract_centre(const In* const (&vectors)[kAbreast], int64_t element_stride,
                               const float* centre, int64_t dim, float* x) {
  const __m512 largest = _mm512_set1_ps(kInt8Largest);
  Centred result{_mm512_setzero_pd(), _mm512_setzero_pd(), 0xffff};
  for (int64_t d = 0; d < dim; d += 16) {
    __m512 elements[kAbreast];
    if (element_stride == 1) {
      const __mmask16 lanes = first_lanes(dim - d);
      VQVAE_FAST_UNROLL
      for (int l = 0; l < kAbreast; ++l) elements[l] = load_widened(lanes, vectors[l] + d);
    } else {
      for (int l = 0; l < kAbreast; ++l) {
        elements[l] = load_strided(dim - d, vectors[l] + d * element_stride, element_stride);
      }
    }
    transpose(elements);
    VQVAE_FAST_UNROLL
    for (int i = 0; i < 16; ++i) {
      const __m512 e = elements[i];
      const __m512 difference = _mm512_sub_ps(e, _mm512_set1_ps(centre[d + i]));
      result.in_range &= _mm512_cmp_ps_mask(_mm512_abs_ps(difference), largest, _CMP_LE_OQ);
      _mm512_storeu_ps(x + (d + i) * kAbreast, difference);
      const __m512d c = _mm512_set1_pd(double(centre[d + i]));
      const __m512d low = _mm512_sub_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(e)), c);
      const __m512d high = _mm512_sub_pd(_mm512_cvtps_pd(_mm512_extractf32x8_ps(e, 1)), c);
      result.low_squares = _mm512_fmadd_pd(low, low, result.low_squares);
      result.high_squares = _mm512_fmadd_pd(high, high, result.high_squares);
    }
  }
  return result;
}

// The sum of eight vectors.
inline __m512 sum_of(const __m512 (&v)[8]) {
  const __m512 low = _mm512_add_ps(_mm512_add_ps(v[0], v[1]), _mm512_add_ps(v[2], v[3]));
  const __m512 high = _mm512_add_ps(_mm512_add_ps(v[4], v[5]), _mm512_add_ps(v[6], v[7]));
  return _mm512_add_ps(low, high);
}

// A vector's products with two others.
struct TwoProducts {
  __m512 first, second;
};

// x less v[0] and v[1] times their products, and that one's products with next[0] and next[1], in
// one pass over x. v, next: [2][padded D].
template <bool kUpdate>
inline TwoProducts reflect_two(const float* v, TwoProducts products, const float* next, int64_t dim,
                               float* x) {
  constexpr int kChains = 8;  // each a chain of latencies
  const int64_t padded = padded_dim(dim);
  __m512 first[kChains], second[kChains];
  VQVAE_FAST_UNROLL
  for (int i = 0; i < kChains; ++i) first[i] = second[i] = _mm512_setzero_ps();
  for (int64_t d = 0; d < dim; d += kChains) {
    VQVAE_FAST_UNROLL
    for (int i = 0; i < kChains; ++i) {
      float* at = x + (d + i) * kAbreast;
      __m512 element = _mm512_loadu_ps(at);
      if (kUpdate) {
        element = _mm512_fnmadd_ps(_mm512_set1_ps(v[d + i]), products.first, element);
        element = _mm512_fnmadd_ps(_mm512_set1_ps(v[padded + d + i]), products.second, element);
        _mm512_storeu_ps(at, element);
      }
      first[i] = _mm512_fmadd_ps(_mm512_set1_ps(next[d + i]), element, first[i]);
      second[i] = _mm512_fmadd_ps(_mm512_set1_ps(next[padded + d + i]), element, second[i]);
    }
  }
  return {sum_of(first), sum_of(second)};
}

// Applies the reflections one after the other, two in a pass. The second meets what the first has
// left: its product is that with x less the first's share.
inline void reflect(const float* reflections, int64_t count, int64_t dim, float* x) {
  if (count == 0) return;
  const float* overlaps = overlaps_of(reflections, dim);
  const int64_t two = 2 * padded_dim(dim);
  TwoProducts products = reflect_two<false>(nullptr, TwoProducts(), reflections, dim, x);
  for (int64_t i = 0; i < count; i += 2, reflections += two) {
    products.second =
        _mm512_fnmadd_ps(_mm512_set1_ps(overlaps[i / 2]), products.first, products.second);
    // The last two products are of no use.
    const float* next = i + 2 < count ? reflections + two : reflections;
    products = reflect_two<true>(reflections, products, next, dim, x);
  }
}

// How far a computed reflection of x is from that of an orthogonal matrix, for all reflections
// together and relative to |x|: D/8 + 6 roundings of the product, which is at most 2 |x| after
// it met v twice, those of v, which change its length, and one of the difference.
inline double reflection_error(int64_t count, int64_t dim) {
  return double(count) * double(dim / 4 + 24) * 0x1p-24;
}

inline __m512 largest_magnitude(const float* x, int64_t first, int64_t last) {
  __m512 largest = _mm512_setzero_ps();
  for (int64_t d = first; d < last; ++d) {
    largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_loadu_ps(x + d * kAbreast)));
  }
  return largest;
}

// Of the vectors of these lanes.
inline Int8Extent extent_of(const float* x, int64_t num_wide, int64_t dim, __mmask16 lanes) {
  const auto most = [&](int64_t first, int64_t last) {
    return _mm512_reduce_max_ps(_mm512_maskz_mov_ps(lanes, largest_magnitude(x, first, last)));
  };
  return {most(0, num_wide), most(num_wide, dim)};
}

// By vector: sums of squares of a part, and of what its integers are short of.
struct PartSquares {
  __m512 all, rest;

  void raise_to(const PartSquares& other, __mmask16 lanes) {
    all = _mm512_mask_max_ps(all, lanes, all, other.all);
    rest = _mm512_mask_max_ps(rest, lanes, rest, other.rest);
  }
};

struct QuantizedPart {
  PartSquares squares;
  __m512i sum;  // of the integers
};

// Elements [first, last) as integers, kPerWord of them in each word: store(word) takes one of each
// vector. The unit is such that they fit.
template <int kPerWord, class Store>
inline QuantizedPart quantize_part(const float* x, int64_t first, int64_t last, float unit,
                                   float per_unit, Store store) {
  constexpr int kBits = 32 / kPerWord;
  const __m512i field = _mm512_set1_epi32((1 << kBits) - 1);
  const __m512 units = _mm512_set1_ps(unit), per_units = _mm512_set1_ps(per_unit);
  __m512 all[kPerWord], rest[kPerWord];
  __m512i sum = _mm512_setzero_si512();
  VQVAE_FAST_UNROLL
  for (int i = 0; i < kPerWord; ++i) all[i] = rest[i] = _mm512_setzero_ps();
  for (int64_t d = first; d < last; d += kPerWord) {
    __m512i word = _mm512_setzero_si512();
    VQVAE_FAST_UNROLL
    for (int i = 0; i < kPerWord; ++i) {
      const __m512 elements = _mm512_loadu_ps(x + (d + i) * kAbreast);
      const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(elements, per_units));
      const __m512 short_of = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(q), units, elements);
      all[i] = _mm512_fmadd_ps(elements, elements, all[i]);
      rest[i] = _mm512_fmadd_ps(short_of, short_of, rest[i]);
      sum = _mm512_add_epi32(sum, q);
      word = _mm512_or_si512(word, _mm512_slli_epi32(_mm512_and_si512(q, field), i * kBits));
    }
    store(word);
  }
  for (int i = 1; i < kPerWord; ++i) {
    all[0] = _mm512_add_ps(all[0], all[i]);
    rest[0] = _mm512_add_ps(rest[0], rest[i]);
  }
  return {{all[0], rest[0]}, sum};
}

struct Quantized {
  PartSquares wide, narrow;
  __m512i narrow_sum;  // of the integers of 8 bits
};

// Where words go: one of each of the vectors [0, count), and the next `stride` words behind.
struct Words {
  int32_t* out;
  int64_t stride;
  __mmask16 vectors;
  __mmask16 usable;  // the others' are zeros

  void put(__m512i word) {
    _mm512_mask_storeu_epi32(out, vectors, _mm512_maskz_mov_epi32(usable, word));
    out += stride;
  }
};

// `flip` is exclusive-ored to the 8-bit integers: 0x80 adds 128.
inline Quantized quantize(const float* x, int64_t num_wide, int64_t dim, float unit, float per_unit,
                          uint8_t flip, Words words) {
  const __m512i flips = _mm512_set1_epi8(char(flip));
  const QuantizedPart wide =
      quantize_part<2>(x, 0, num_wide, unit, per_unit, [&](__m512i word) { words.put(word); });
  const QuantizedPart narrow =
      quantize_part<4>(x, num_wide, dim, unit, per_unit,
                       [&](__m512i word) { words.put(_mm512_xor_si512(word, flips)); });
  return {wide.squares, narrow.squares, narrow.sum};
}

// What a float32 sum of squares may be short of, as a factor on its root.
inline double root_error(int64_t dim) { return 1 + double(dim + 8) * 0x1p-24; }

// More than the root of up to 4096 squares that were flushed to zero; units are far above it.
constexpr double kLostToUnderflow = 0x1p-56;

// Each vector's sums.
struct Squares {
  float wide[kAbreast], wide_rest[kAbreast], narrow[kAbreast], narrow_rest[kAbreast];

  explicit Squares(const PartSquares& of_wide, const PartSquares& of_narrow) {
    _mm512_storeu_ps(wide, of_wide.all);
    _mm512_storeu_ps(wide_rest, of_wide.rest);
    _mm512_storeu_ps(narrow, of_narrow.all);
    _mm512_storeu_ps(narrow_rest, of_narrow.rest);
  }
};

// What is known of vector l, of that norm. To subtract the centre rounded each element once.
inline Int8Sizes sizes_of(const Squares& squares, int64_t l, double norm, int64_t num_wide,
                          int64_t dim) {
  const double root = root_error(dim);
  const double lost = (0x1p-23 + reflection_error(num_wide, dim)) * norm + kLostToUnderflow;
  const auto most = [&](const float* of) { return sqrt(double(of[l])) * root + lost; };
  Int8Sizes sizes{norm, 0, most(squares.narrow), 0, most(squares.narrow_rest)};
  if (num_wide > 0) {
    sizes.wide = most(squares.wide);
    sizes.wide_error = most(squares.wide_rest);
  }
  return sizes;
}

}  // namespace
}  // namespace vqvae_fast
