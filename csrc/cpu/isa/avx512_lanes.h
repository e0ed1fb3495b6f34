// Eight lanes of float64 in AVX-512, for the exact distances.
#pragma once

#include <immintrin.h>

#include "../../rows.h"

namespace vqvae_fast {
namespace {

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
  static double sum(Vec v) {
    const __m256d m = _mm256_add_pd(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd(v, 1));
    const __m128d n = _mm_add_pd(_mm256_castpd256_pd128(m), _mm256_extractf128_pd(m, 1));
    return _mm_cvtsd_f64(_mm_add_sd(n, _mm_unpackhi_pd(n, n)));
  }
};

}  // namespace
}  // namespace vqvae_fast
