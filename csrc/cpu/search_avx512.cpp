// AVX-512: 32 registers hold 8 rows x 3 vectors of codes (24 accumulators) and the operands.
#include <immintrin.h>

#include "search_kernel.h"

namespace vqvae_fast {
namespace {

// Eight lanes of float64, for the exact distances.
struct Avx512Lanes {
  using Vec = __m512d;
  static Vec zero() { return _mm512_setzero_pd(); }
  static Vec broadcast(double v) { return _mm512_set1_pd(v); }
  static Vec load(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
  static Vec load(const double* p) { return _mm512_loadu_pd(p); }
  static void store(float* p, Vec v) { _mm256_storeu_ps(p, _mm512_cvtpd_ps(v)); }
  static void store(double* p, Vec v) { _mm512_storeu_pd(p, v); }
  static Vec subtract(Vec a, Vec b) { return _mm512_sub_pd(a, b); }
  static Vec multiply(Vec a, Vec b) { return _mm512_mul_pd(a, b); }
  static Vec add_square(Vec sum, Vec v) { return _mm512_add_pd(sum, _mm512_mul_pd(v, v)); }
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
  static T reduce_max(Vec v) { return _mm512_reduce_max_ps(v); }
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
  static T reduce_max(Vec v) { return _mm512_reduce_max_pd(v); }
};

}  // namespace

extern const InstructionSet kAvx512 = make_instruction_set<Avx512Float, Avx512Double>("avx512");

}  // namespace vqvae_fast
