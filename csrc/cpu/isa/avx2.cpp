// machines: x86_64
// flags: -mavx2 -mfma
// flags: -fno-tree-slp-vectorize
//
// The kernels use vectors explicitly. GCC's SLP vectorizer would also pair up scalars, such as the
// addresses of three codes; they would go through memory, which costs more than it saves.
//
// This file is the engine for AVX2 and FMA: 16 registers hold 4 rows x 3 vectors of codes (12
// accumulators) and the operands.
#include <immintrin.h>

#include "../float_search/search_kernel.h"

namespace vqvae_fast {
namespace {

// Avx2Lanes has eight lanes of float64, for the exact distances.
struct Avx2Lanes {
  struct Vec {
    __m256d low, high;
  };
  static Vec zero() { return {_mm256_setzero_pd(), _mm256_setzero_pd()}; }
  static Vec broadcast(double v) { return {_mm256_set1_pd(v), _mm256_set1_pd(v)}; }
  static Vec load(const float* p) {
    return {_mm256_cvtps_pd(_mm_loadu_ps(p)), _mm256_cvtps_pd(_mm_loadu_ps(p + 4))};
  }
  static Vec load(const double* p) { return {_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)}; }
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
  // Returns the sums of the lanes of eight vectors.
  static Vec sums_of(const Vec (&v)[8]) {
    const Vec a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    const Vec b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
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

constexpr Engines kEngines = make_engines<Avx2Float, Avx2Double>();

VQVAE_FAST_PROBE bool machine_has() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

}  // namespace

namespace isa {
extern constinit const InstructionSet avx2 = {"avx2", 10, machine_has, &kEngines};
}  // namespace isa

}  // namespace vqvae_fast
