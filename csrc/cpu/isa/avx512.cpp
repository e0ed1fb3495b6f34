// machines: x86_64
// flags: -mavx512f -mavx512bw -mavx512dq -mavx512vl -mf16c -mfma
// flags: -fno-tree-slp-vectorize
//
// The kernels use vectors explicitly. GCC's SLP vectorizer would also pair up scalars, such as the
// addresses of three codes; they would go through memory, which costs more than it saves.
//
// This file is the engine for AVX-512: 32 registers hold 8 rows x 3 vectors of codes (24
// accumulators) and the operands. The tile of its int8 filter is 12 rows x 2 vectors.
#include "../float_search/search_kernel.h"
#include "../int8_filter/pairwise_products.h"
#include "../int8_filter/tiled_kernel.h"
#include "avx512_simd.h"

namespace vqvae_fast {
namespace {

constexpr Int8Filters kFilters =
    make_filters<TiledKernel<Avx512Filter, PairwiseProducts<Avx512Filter>, 12>>();

VQVAE_FAST_PROBE bool machine_has() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("fma");
}

}  // namespace

namespace isa {
extern constinit const Engines avx512_engines = make_engines<Avx512Float, Avx512Double>();
extern constinit const InstructionSet avx512 = {"avx512", 20, machine_has, &avx512_engines,
                                                &kFilters};
}  // namespace isa

}  // namespace vqvae_fast
