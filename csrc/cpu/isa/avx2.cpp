// machines: x86_64
// flags: -mavx2 -mfma
// flags: -fno-tree-slp-vectorize
//
// The kernels use vectors explicitly. GCC's SLP vectorizer would also pair up scalars, such as the
// addresses of three codes; they would go through memory, which costs more than it saves.
//
// This file is the engine for AVX2 and FMA: 16 registers hold 4 rows x 3 vectors of codes (12
// accumulators) and the operands. The tile of its int8 filter is 6 rows x 2 vectors.
#include "../float_search/search_kernel.h"
#include "../int8_filter/pairwise_products.h"
#include "../int8_filter/tiled_kernel.h"
#include "avx2_simd.h"

namespace vqvae_fast {
namespace {

constexpr Int8Filters kFilters =
    make_filters<TiledKernel<Avx2Filter, PairwiseProducts<Avx2Filter>, 6>>();

VQVAE_FAST_PROBE bool machine_has() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

}  // namespace

namespace isa {
extern constinit const Engines avx2_engines = make_engines<Avx2Float, Avx2Double>();
extern constinit const InstructionSet avx2 = {"avx2", 10, machine_has, &avx2_engines, &kFilters};
}  // namespace isa

}  // namespace vqvae_fast
