// machines: x86_64
// flags: -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mf16c -mfma
// flags: -fno-tree-slp-vectorize -fno-exceptions
// assembler: tdpbssd %tmm0, %tmm1, %tmm2
//
// The kernels use vectors explicitly. GCC's SLP vectorizer would also pair up scalars, such as the
// addresses of three codes; they would go through memory, which costs more than it saves.
//
// This file is the int8 filter for Intel's matrix unit (AMX) in processors that have AVX-512 VNNI,
// too. The instructions of tiles are written in assembler, so they need no flags. Without
// exceptions no destructor needs a table that the linker would share with other files.
#include "amx_kernel.h"
#include "amx_tiles.h"

namespace vqvae_fast {
namespace {

constexpr Int8Filters kFilters = make_filters<AmxKernel<AmxTiles>>();

// The system is asked once, by whichever thread comes first, and its answer is kept.
VQVAE_FAST_PROBE bool machine_has() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma") &&
                          processor_has_tiles() && system_grants_tiles();
  return has;
}

// This is below the priority of avx512vnni because no machine has measured this file yet. Once it
// is measured to be faster, the number becomes 40 and nothing else changes.
constexpr int kPriority = 25;

}  // namespace

namespace isa {
extern const Engines avx512_engines;  // the engines of avx512.cpp
extern constinit const InstructionSet avx512amx = {"avx512amx", kPriority, machine_has,
                                                   &avx512_engines, &kFilters};
}  // namespace isa

}  // namespace vqvae_fast
