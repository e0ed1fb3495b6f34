// AVX-512: 32 registers hold 8 rows x 3 vectors of codes (24 accumulators) and the operands.
#include <immintrin.h>

#include "../float_search/search_kernel.h"
#include "avx512_lanes.h"

namespace vqvae_fast {
namespace {

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
  static T reduce_add(Vec v) { return _mm512_reduce_add_pd(v); }
};

}  // namespace

extern const Int8Filters kInt8Filters;

extern const InstructionSet kAvx512Vnni =
    make_instruction_set<Avx512Float, Avx512Double>("avx512vnni", &kInt8Filters);
extern const InstructionSet kAvx512 = make_instruction_set<Avx512Float, Avx512Double>("avx512");

}  // namespace vqvae_fast
