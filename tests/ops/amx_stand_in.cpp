// machines: x86_64
// flags: -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mf16c -mfma
//
// The instruction set avx512amx over the matrix unit's stand-in, for tests: processors that have
// AVX-512 VNNI can run it. test_amx.py builds it.
#include "amx_stand_in.h"

#include "../../csrc/cpu/isa/amx_kernel.h"

namespace vqvae_fast {

// The 64 bytes that hold the calling thread's shapes of tiles.
unsigned char* stand_in_configuration() {
  return reinterpret_cast<unsigned char*>(&StandInTiles::state().shapes);
}

namespace {

constexpr Int8Filters kFilters = make_filters<AmxKernel<StandInTiles>>();

VQVAE_FAST_PROBE bool machine_has() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}

}  // namespace

namespace isa {
extern const Engines avx512_engines;  // the engines of avx512.cpp
// The highest priority: attack.cpp counts what the filter of the best instruction set settles.
extern constinit const InstructionSet amx_stand_in = {"amx_stand_in", 100, machine_has,
                                                      &avx512_engines, &kFilters};
}  // namespace isa

}  // namespace vqvae_fast
