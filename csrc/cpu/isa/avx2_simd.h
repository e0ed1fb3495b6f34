// This file defines the vectors of AVX2: eight lanes of float64 for the exact distances, float32
// and float64 for the float search, float32 and int32 for the int8 filter.
#pragma once

#include <immintrin.h>

#include "../../rows.h"
#include "../contract.h"

namespace vqvae_fast {
namespace {

// Loads eight numbers of 16 bits, widened.
inline __m256i load_words(const void* p) {
  return _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}
inline __m256 widen(const BFloat16* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(load_words(p), 16));
}
// This is widen() of elements.h for eight numbers. A processor with AVX2 need not have F16C.
inline __m256 widen(const Half* p) {
  const __m256i bits = load_words(p), magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fff));
  const __m256i sign = _mm256_slli_epi32(_mm256_xor_si256(bits, magnitude), 16);
  const __m256 scaled = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(magnitude, 13)),
                                      _mm256_set1_ps(0x1p112f));
  const __m256i is_special = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7bff));
  const __m256i special = _mm256_and_si256(is_special, _mm256_set1_epi32(0x7f800000));
  return _mm256_or_ps(scaled, _mm256_castsi256_ps(_mm256_or_si256(special, sign)));
}

// Avx2Lanes has eight lanes of float64, for the exact distances.
struct Avx2Lanes {
  struct Vec {
    __m256d low, high;
  };
  static Vec zero() { return {_mm256_setzero_pd(), _mm256_setzero_pd()}; }
  static Vec broadcast(double v) { return {_mm256_set1_pd(v), _mm256_set1_pd(v)}; }
  static Vec of_floats(__m256 v) {
    return {_mm256_cvtps_pd(_mm256_castps256_ps128(v)),
            _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))};
  }
  static Vec load(const float* p) {
    return {_mm256_cvtps_pd(_mm_loadu_ps(p)), _mm256_cvtps_pd(_mm_loadu_ps(p + 4))};
  }
  static Vec load(const double* p) { return {_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)}; }
  static Vec load(const BFloat16* p) { return of_floats(widen(p)); }
  static Vec load(const Half* p) { return of_floats(widen(p)); }
  static void store(float* p, Vec v) {
    _mm_storeu_ps(p, _mm256_cvtpd_ps(v.low));
    _mm_storeu_ps(p + 4, _mm256_cvtpd_ps(v.high));
  }
  static void store(double* p, Vec v) {
    _mm256_storeu_pd(p, v.low);
    _mm256_storeu_pd(p + 4, v.high);
  }
  static Vec subtract(Vec a, Vec b) {
    return {_mm256_sub_pd(a.low, b.low), _mm256_sub_pd(a.high, b.high)};
  }
  static Vec add(Vec a, Vec b) {
    return {_mm256_add_pd(a.low, b.low), _mm256_add_pd(a.high, b.high)};
  }
  static Vec multiply(Vec a, Vec b) {
    return {_mm256_mul_pd(a.low, b.low), _mm256_mul_pd(a.high, b.high)};
  }
  static Vec add_square(Vec sum, Vec v) {
    return {_mm256_add_pd(sum.low, _mm256_mul_pd(v.low, v.low)),
            _mm256_add_pd(sum.high, _mm256_mul_pd(v.high, v.high))};
  }
  // This rounds once, unlike add_square, which must round as every instruction set does.
  static Vec multiply_add(Vec a, Vec b, Vec c) {
    return {_mm256_fmadd_pd(a.low, b.low, c.low), _mm256_fmadd_pd(a.high, b.high, c.high)};
  }
  static Vec subtract_product(Vec a, Vec b, Vec c) {
    return {_mm256_fnmadd_pd(a.low, b.low, c.low), _mm256_fnmadd_pd(a.high, b.high, c.high)};
  }
  static void keep_nearer(Vec& nearest, Vec& index, Vec distance, Vec its_index) {
    keep_nearer(nearest.low, index.low, distance.low, its_index.low);
    keep_nearer(nearest.high, index.high, distance.high, its_index.high);
  }
  static double sum(Vec v) {
    const __m256d m = _mm256_add_pd(v.low, v.high);
    const __m128d n = _mm_add_pd(_mm256_castpd256_pd128(m), _mm256_extractf128_pd(m, 1));
    return _mm_cvtsd_f64(_mm_add_sd(n, _mm_unpackhi_pd(n, n)));
  }

 private:
  static void keep_nearer(__m256d& nearest, __m256d& index, __m256d distance, __m256d its_index) {
    index = _mm256_blendv_pd(index, its_index, _mm256_cmp_pd(distance, nearest, _CMP_LT_OQ));
    nearest = _mm256_min_pd(distance, nearest);  // if the distance is NaN, the second
  }
};

struct Avx2Float {
  using T = float;
  using Vec = __m256;
  using Mask = uint8_t;  // a bit per lane
  using Doubles = Avx2Lanes;
  static constexpr int kWidth = 8, kTileVecs = 3, kTileRows = 4;
  static constexpr int kTileCodes = kWidth * kTileVecs;
  static Vec load(const T* p) { return _mm256_loadu_ps(p); }
  static void store(T* p, Vec v) { _mm256_storeu_ps(p, v); }
  static Vec broadcast(T v) { return _mm256_set1_ps(v); }
  static Vec multiply_add(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
  static Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
  static Mask greater(Vec a, Vec b) {
    return static_cast<Mask>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
  }
  static Mask at_least(Vec a, Vec b) {
    return static_cast<Mask>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
  }
  static T reduce_max(Vec v) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
  }
  static Vec subtract(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
  // Loads the first `count` elements, and fills the rest with zeros.
  static Vec load_some(const T* p, int64_t count) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)), lanes));
  }
  static Vec load_some(const BFloat16* p, int64_t count) { return widen_some(p, count); }
  static Vec load_some(const Half* p, int64_t count) { return widen_some(p, count); }
  // Returns the sums of the lanes of eight vectors.
  static Vec sums_of(const Vec (&v)[8]) {
    const Vec a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    const Vec b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
  }

 private:
  template <class In>
  static Vec widen_some(const In* p, int64_t count) {
    if (count >= 8) return widen(p);
    In elements[8] = {};
    for (int64_t i = 0; i < count; ++i) elements[i] = p[i];
    return widen(elements);
  }
};

struct Avx2Double {
  using T = double;
  using Vec = __m256d;
  using Mask = uint8_t;  // a bit per lane
  using Doubles = Avx2Lanes;
  static constexpr int kWidth = 4, kTileVecs = 3, kTileRows = 4;
  static constexpr int kTileCodes = kWidth * kTileVecs;
  static Vec load(const T* p) { return _mm256_loadu_pd(p); }
  static void store(T* p, Vec v) { _mm256_storeu_pd(p, v); }
  static Vec broadcast(T v) { return _mm256_set1_pd(v); }
  static Vec multiply_add(Vec a, Vec b, Vec c) { return _mm256_fmadd_pd(a, b, c); }
  static Vec max(Vec a, Vec b) { return _mm256_max_pd(a, b); }
  static Vec min(Vec a, Vec b) { return _mm256_min_pd(a, b); }
  static Mask greater(Vec a, Vec b) {
    return static_cast<Mask>(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_GT_OQ)));
  }
  static Mask at_least(Vec a, Vec b) {
    return static_cast<Mask>(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_GE_OQ)));
  }
  static T reduce_max(Vec v) {
    const __m128d m = _mm_max_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_max_sd(m, _mm_unpackhi_pd(m, m)));
  }
  static Vec subtract(Vec a, Vec b) { return _mm256_sub_pd(a, b); }
  // Loads the first `count` elements, and fills the rest with zeros.
  static Vec load_some(const T* p, int64_t count) {
    const __m256i lanes = _mm256_setr_epi64x(0, 1, 2, 3);
    return _mm256_maskload_pd(p, _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), lanes));
  }
  // Returns the sums of the lanes of four vectors.
  static Vec sums_of(const Vec (&v)[4]) {
    const Vec a = _mm256_hadd_pd(v[0], v[1]), b = _mm256_hadd_pd(v[2], v[3]);
    return _mm256_add_pd(_mm256_permute2f128_pd(a, b, 0x20), _mm256_permute2f128_pd(a, b, 0x31));
  }
};

// Avx2Filter adds the operations of the int8 filter to those of the float search.
struct Avx2Filter : Avx2Float {
  using Ints = __m256i;
  using Avx2Float::at_least;
  using Avx2Float::greater;
  using Avx2Float::max;
  using Avx2Float::reduce_max;

  static Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static Vec multiply(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
  static Vec subtract_product(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a b
  static Vec abs(Vec v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
  static Vec select(Mask m, Vec yes, Vec no) {
    return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(lanes_of(m)));
  }
  static T reduce_add(Vec v) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }

  static Ints load_ints(const int32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static void store_ints(int32_t* p, Ints v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
  }
  template <int kCount>
  static void store_first_ints(int32_t* p, Ints v) {
    _mm256_maskstore_epi32(p, lanes_of((1 << kCount) - 1), v);
  }
  static Ints broadcast_int(int32_t v) { return _mm256_set1_epi32(v); }
  static Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  static Ints max(Ints a, Ints b) { return _mm256_max_epi32(a, b); }
  static Mask greater(Ints a, Ints b) { return mask_of(_mm256_cmpgt_epi32(a, b)); }
  static Mask at_least(Ints a, Ints b) { return Mask(~mask_of(_mm256_cmpgt_epi32(b, a))); }
  static int32_t reduce_max(Ints v) {
    __m128i most = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(most, _mm_shuffle_epi32(most, 0xb1)));
  }
  static Ints select(Mask m, Ints yes, Ints no) { return _mm256_blendv_epi8(no, yes, lanes_of(m)); }
  static Ints bit_and(Ints a, Ints b) { return _mm256_and_si256(a, b); }
  static Ints bit_or(Ints a, Ints b) { return _mm256_or_si256(a, b); }
  static Ints bit_xor(Ints a, Ints b) { return _mm256_xor_si256(a, b); }
  static Ints shift_left(Ints v, unsigned bits) { return _mm256_slli_epi32(v, int(bits)); }
  static Ints round(Vec v) { return _mm256_cvtps_epi32(v); }
  static Vec to_float(Ints v) { return _mm256_cvtepi32_ps(v); }
  // Multiplies unsigned bytes with signed ones, and adds two neighbouring products; a sum that does
  // not fit in 16 bits becomes the nearest number that does.
  static Ints multiply_bytes(Ints a, Ints b) { return _mm256_maddubs_epi16(a, b); }
  // Multiplies signed numbers of 16 bits, and adds two neighbouring products.
  static Ints multiply_words(Ints a, Ints b) { return _mm256_madd_epi16(a, b); }
  // Adds neighbouring signed numbers of 16 bits. The ones stay in memory: GCC would keep them in a
  // register, which a tile of scores needs.
  static Ints add_words(Ints v) {
#if defined(__GNUC__)
    static constexpr Ones ones = {{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}};
    __asm__("vpmaddwd %1, %0, %0" : "+x"(v) : "m"(ones));
    return v;
#else
    return _mm256_madd_epi16(v, _mm256_set1_epi16(1));
#endif
  }

  static void to_doubles(Vec v, Doubles::Vec (&parts)[1]) { parts[0] = Doubles::of_floats(v); }

  // Returns a bit for each of 64 masks: whether the mask has any lane.
  static uint64_t not_empty(const Mask* masks) {
    const auto empty = [&](int at) {
      const __m256i some = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(masks + at));
      return uint32_t(_mm256_movemask_epi8(_mm256_cmpeq_epi8(some, _mm256_setzero_si256())));
    };
    return ~(uint64_t{empty(0)} | uint64_t{empty(32)} << 32);
  }

  // Turns eight vectors of eight elements each into eight elements of all vectors.
  static void transpose(Vec (&v)[8]) {
    __m256 pairs[8], quads[8];
    VQVAE_FAST_UNROLL
    for (int i = 0; i < 8; i += 2) {
      pairs[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
      pairs[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
    VQVAE_FAST_UNROLL
    for (int i = 0; i < 8; i += 4) {
      quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
      quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
      quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
      quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
    }
    // Now half b of quads[4 g + j] has element 4 b + j of vectors 4 g ... 4 g + 3.
    VQVAE_FAST_UNROLL
    for (int j = 0; j < 4; ++j) {
      v[j] = _mm256_permute2f128_ps(quads[j], quads[4 + j], 0x20);
      v[4 + j] = _mm256_permute2f128_ps(quads[j], quads[4 + j], 0x31);
    }
  }

 private:
  struct alignas(32) Ones {
    int16_t of_lane[16];
  };
  static Mask mask_of(Ints lanes) { return Mask(_mm256_movemask_ps(_mm256_castsi256_ps(lanes))); }
  static Ints lanes_of(Mask m) {
    const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(m), bits), bits);
  }
};

}  // namespace
}  // namespace vqvae_fast
