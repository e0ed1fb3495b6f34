// This file defines the vectors of AVX-512: eight lanes of float64 for the exact distances, float32
// and float64 for the float search, float32 and int32 for the int8 filter.
#pragma once

#include <immintrin.h>

#include "../../rows.h"
#include "../contract.h"

namespace vqvae_fast {
namespace {

// Avx512Lanes has eight lanes of float64.
struct Avx512Lanes {
  using Vec = __m512d;
  static Vec zero() { return _mm512_setzero_pd(); }
  static Vec broadcast(double v) { return _mm512_set1_pd(v); }
  static Vec load(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
  static Vec load(const double* p) { return _mm512_loadu_pd(p); }
  static Vec load(const BFloat16* p) {
    const __m256i bits =
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)));
  }
  static Vec load(const Half* p) {
    return _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static void store(float* p, Vec v) { _mm256_storeu_ps(p, _mm512_cvtpd_ps(v)); }
  static void store(double* p, Vec v) { _mm512_storeu_pd(p, v); }
  static Vec subtract(Vec a, Vec b) { return _mm512_sub_pd(a, b); }
  static Vec add(Vec a, Vec b) { return _mm512_add_pd(a, b); }
  static Vec multiply(Vec a, Vec b) { return _mm512_mul_pd(a, b); }
  static Vec add_square(Vec sum, Vec v) { return _mm512_add_pd(sum, _mm512_mul_pd(v, v)); }
  // This rounds once, unlike add_square, which must round as every instruction set does.
  static Vec multiply_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_pd(a, b, c); }
  static Vec subtract_product(Vec a, Vec b, Vec c) { return _mm512_fnmadd_pd(a, b, c); }
  static void keep_nearer(Vec& nearest, Vec& index, Vec distance, Vec its_index) {
    index = _mm512_mask_mov_pd(index, _mm512_cmp_pd_mask(distance, nearest, _CMP_LT_OQ), its_index);
    nearest = _mm512_min_pd(distance, nearest);  // if the distance is NaN, the second
  }
  static double sum(Vec v) {
    const __m256d m = _mm256_add_pd(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd(v, 1));
    const __m128d n = _mm_add_pd(_mm256_castpd256_pd128(m), _mm256_extractf128_pd(m, 1));
    return _mm_cvtsd_f64(_mm_add_sd(n, _mm_unpackhi_pd(n, n)));
  }
};

struct Avx512Float {
  using T = float;
  using Vec = __m512;
  using Mask = uint16_t;  // a bit per lane
  using Doubles = Avx512Lanes;
  static constexpr int kWidth = 16, kTileVecs = 3, kTileRows = 8;
  static constexpr int kTileCodes = kWidth * kTileVecs;
  static Vec load(const T* p) { return _mm512_loadu_ps(p); }
  static void store(T* p, Vec v) { _mm512_storeu_ps(p, v); }
  static Vec broadcast(T v) { return _mm512_set1_ps(v); }
  static Vec multiply_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
  static Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
  static Mask greater(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static Mask at_least(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static Vec subtract(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
  static T reduce_max(Vec v) { return _mm512_reduce_max_ps(v); }
  static T reduce_add(Vec v) { return _mm512_reduce_add_ps(v); }

  // Loads the first `count` elements, widened, and fills the rest with zeros.
  static Vec load_some(const float* p, int64_t count) {
    return _mm512_maskz_loadu_ps(lanes(count), p);
  }
  static Vec load_some(const BFloat16* p, int64_t count) {
    const __m256i bits = _mm256_maskz_loadu_epi16(lanes(count), p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static Vec load_some(const Half* p, int64_t count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes(count), p));
  }

  // Returns the sums of the lanes of 16 vectors.
  static Vec sums_of(const Vec (&v)[16]) {
    Vec pairs[8], quads[4], eights[2];
    VQVAE_FAST_UNROLL
    for (int i = 0; i < 8; ++i) {
      const Vec a = v[2 * i], b = v[2 * i + 1];
      pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    }
    VQVAE_FAST_UNROLL
    for (int i = 0; i < 4; ++i) {
      const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
      quads[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                               _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    // Each quarter of quads[i] has a part of the sums of vectors 4 i ... 4 i + 3.
    VQVAE_FAST_UNROLL
    for (int i = 0; i < 2; ++i) eights[i] = add_quarters(quads[2 * i], quads[2 * i + 1]);
    return add_quarters(eights[0], eights[1]);
  }

 private:
  static Mask lanes(int64_t count) { return count >= 16 ? Mask(0xffff) : Mask((1u << count) - 1); }
  // Adds the odd quarters to the even ones: first those of a, then those of b.
  static Vec add_quarters(Vec a, Vec b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
};

struct Avx512Double {
  using T = double;
  using Vec = __m512d;
  using Mask = uint8_t;  // a bit per lane
  using Doubles = Avx512Lanes;
  static constexpr int kWidth = 8, kTileVecs = 3, kTileRows = 8;
  static constexpr int kTileCodes = kWidth * kTileVecs;
  static Vec load(const T* p) { return _mm512_loadu_pd(p); }
  static void store(T* p, Vec v) { _mm512_storeu_pd(p, v); }
  static Vec broadcast(T v) { return _mm512_set1_pd(v); }
  static Vec multiply_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_pd(a, b, c); }
  static Vec max(Vec a, Vec b) { return _mm512_max_pd(a, b); }
  static Vec min(Vec a, Vec b) { return _mm512_min_pd(a, b); }
  static Mask greater(Vec a, Vec b) { return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ); }
  static Mask at_least(Vec a, Vec b) { return _mm512_cmp_pd_mask(a, b, _CMP_GE_OQ); }
  static Vec subtract(Vec a, Vec b) { return _mm512_sub_pd(a, b); }
  static T reduce_max(Vec v) { return _mm512_reduce_max_pd(v); }
  // Loads the first `count` elements, and fills the rest with zeros.
  static Vec load_some(const T* p, int64_t count) {
    return _mm512_maskz_loadu_pd(count >= 8 ? Mask(0xff) : Mask((1u << count) - 1), p);
  }

  // Returns the sums of the lanes of eight vectors.
  static Vec sums_of(const Vec (&v)[8]) {
    Vec pairs[4];
    VQVAE_FAST_UNROLL
    for (int i = 0; i < 4; ++i) {
      const Vec a = v[2 * i], b = v[2 * i + 1];
      pairs[i] = _mm512_add_pd(_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
    }
    return add_quarters(add_quarters(pairs[0], pairs[1]), add_quarters(pairs[2], pairs[3]));
  }

 private:
  // Adds the odd quarters to the even ones: first those of a, then those of b.
  static Vec add_quarters(Vec a, Vec b) {
    return _mm512_add_pd(_mm512_shuffle_f64x2(a, b, 0x88), _mm512_shuffle_f64x2(a, b, 0xdd));
  }
};

// Avx512Filter adds the operations of the int8 filter to those of the float search.
struct Avx512Filter : Avx512Float {
  using Ints = __m512i;
  using Avx512Float::at_least;
  using Avx512Float::greater;
  using Avx512Float::max;
  using Avx512Float::reduce_max;

  static Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static Vec multiply(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  static Vec subtract_product(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a b
  static Vec abs(Vec v) { return _mm512_abs_ps(v); }
  static Vec select(Mask m, Vec yes, Vec no) { return _mm512_mask_mov_ps(no, m, yes); }

  static Ints load_ints(const int32_t* p) { return _mm512_loadu_si512(p); }
  static void store_ints(int32_t* p, Ints v) { _mm512_storeu_si512(p, v); }
  template <int kCount>
  static void store_first_ints(int32_t* p, Ints v) {
    _mm512_mask_storeu_epi32(p, (1 << kCount) - 1, v);
  }
  static Ints broadcast_int(int32_t v) { return _mm512_set1_epi32(v); }
  static Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static Ints max(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
  static Mask greater(Ints a, Ints b) { return _mm512_cmpgt_epi32_mask(a, b); }
  static Mask at_least(Ints a, Ints b) { return _mm512_cmpge_epi32_mask(a, b); }
  static int32_t reduce_max(Ints v) { return _mm512_reduce_max_epi32(v); }
  static Ints select(Mask m, Ints yes, Ints no) { return _mm512_mask_mov_epi32(no, m, yes); }
  static Ints bit_and(Ints a, Ints b) { return _mm512_and_si512(a, b); }
  static Ints bit_or(Ints a, Ints b) { return _mm512_or_si512(a, b); }
  static Ints bit_xor(Ints a, Ints b) { return _mm512_xor_si512(a, b); }
  static Ints shift_left(Ints v, unsigned bits) { return _mm512_slli_epi32(v, bits); }
  static Ints round(Vec v) { return _mm512_cvtps_epi32(v); }
  static Vec to_float(Ints v) { return _mm512_cvtepi32_ps(v); }
  // Multiplies unsigned bytes with signed ones, and adds two neighbouring products; a sum that does
  // not fit in 16 bits becomes the nearest number that does.
  static Ints multiply_bytes(Ints a, Ints b) { return _mm512_maddubs_epi16(a, b); }
  // Multiplies signed numbers of 16 bits, and adds two neighbouring products.
  static Ints multiply_words(Ints a, Ints b) { return _mm512_madd_epi16(a, b); }
  // Adds neighbouring signed numbers of 16 bits.
  static Ints add_words(Ints v) { return _mm512_madd_epi16(v, _mm512_set1_epi16(1)); }

  static void to_doubles(Vec v, Doubles::Vec (&parts)[2]) {
    parts[0] = _mm512_cvtps_pd(_mm512_castps512_ps256(v));
    parts[1] = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
  }

  // Returns a bit for each of 64 masks: whether the mask has any lane.
  static uint64_t not_empty(const Mask* masks) {
    const __m512i low = _mm512_loadu_si512(masks), high = _mm512_loadu_si512(masks + 32);
    return uint64_t{_mm512_test_epi16_mask(low, low)} | uint64_t{_mm512_test_epi16_mask(high, high)}
                                                            << 32;
  }

  // Turns 16 vectors of 16 elements each into 16 elements of all vectors.
  static void transpose(Vec (&v)[16]) {
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
    // Now quarter b of v[4 g + j] has element 4 b + j of vectors 4 g ... 4 g + 3.
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
};

}  // namespace
}  // namespace vqvae_fast
