// AVX2 and FMA: 16 registers hold 4 rows x 24 codes (12 accumulators) and the operands.
#include <immintrin.h>

#include "search_kernel.h"

namespace vqvae_fast {
namespace {

struct Avx2Float {
  using T = float;
  using Vec = __m256;
  static constexpr int kWidth = 8, kTileVecs = 3, kTileRows = 4;
  static constexpr int kTileCodes = kWidth * kTileVecs;
  static Vec load(const T* p) { return _mm256_loadu_ps(p); }
  static void store(T* p, Vec v) { _mm256_storeu_ps(p, v); }
  static Vec broadcast(T v) { return _mm256_set1_ps(v); }
  static Vec multiply_add(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
  static Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
  static Vec where_greater(Vec a, Vec b, Vec yes, Vec no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
  }
  static bool any_at_least(Vec a, Vec b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)) != 0;
  }
};

struct Avx2Double {
  using T = double;
  using Vec = __m256d;
  static constexpr int kWidth = 4, kTileVecs = 3, kTileRows = 4;
  static constexpr int kTileCodes = kWidth * kTileVecs;
  static Vec load(const T* p) { return _mm256_loadu_pd(p); }
  static void store(T* p, Vec v) { _mm256_storeu_pd(p, v); }
  static Vec broadcast(T v) { return _mm256_set1_pd(v); }
  static Vec multiply_add(Vec a, Vec b, Vec c) { return _mm256_fmadd_pd(a, b, c); }
  static Vec max(Vec a, Vec b) { return _mm256_max_pd(a, b); }
  static Vec min(Vec a, Vec b) { return _mm256_min_pd(a, b); }
  static Vec where_greater(Vec a, Vec b, Vec yes, Vec no) {
    return _mm256_blendv_pd(no, yes, _mm256_cmp_pd(a, b, _CMP_GT_OQ));
  }
  static bool any_at_least(Vec a, Vec b) {
    return _mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_GE_OQ)) != 0;
  }
};

}  // namespace

extern const InstructionSet kAvx2 = make_instruction_set<Avx2Float, Avx2Double>("avx2");

}  // namespace vqvae_fast
