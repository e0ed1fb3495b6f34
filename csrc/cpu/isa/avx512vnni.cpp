// machines: x86_64
// flags: -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mf16c -mfma
// flags: -fno-tree-slp-vectorize
//
// The kernels use vectors explicitly. GCC's SLP vectorizer would also pair up scalars, such as the
// addresses of three codes; they would go through memory, which costs more than it saves.
//
// This file is the int8 filter for AVX-512 VNNI: 32 registers hold 14 rows x 2 vectors of codes (28
// accumulators) and the operands. docs/performance.md tells what limits it.
#include "../int8_filter/tiled_kernel.h"
#include "avx512_products.h"
#include "avx512_simd.h"

namespace vqvae_fast {
namespace {

constexpr Int8Filters kFilters = make_filters<TiledKernel<Avx512Filter, Vnni, 14>>();

VQVAE_FAST_PROBE bool machine_has() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}

}  // namespace

namespace isa {
extern const Engines avx512_engines;  // the engines of avx512.cpp
extern constinit const InstructionSet avx512vnni = {"avx512vnni", 30, machine_has, &avx512_engines,
                                                    &kFilters};
}  // namespace isa

}  // namespace vqvae_fast
