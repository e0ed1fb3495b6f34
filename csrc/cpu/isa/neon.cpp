// machines: aarch64 arm64
// flags: -fno-tree-slp-vectorize
//
// The kernels use vectors explicitly. GCC's SLP vectorizer would also pair up scalars, such as the
// addresses of three codes; they would go through memory, which costs more than it saves.
//
// This file is the engine for 64-bit Arm, whose every processor has NEON: 32 registers hold 6 rows
// x 4 registers of codes (24 accumulators) and the operands.
#include "../float_search/search_kernel.h"
#include "neon_simd.h"

namespace vqvae_fast {
namespace {

VQVAE_FAST_PROBE bool machine_has() { return true; }

}  // namespace

namespace isa {
extern constinit const Engines neon_engines = make_engines<NeonFloat, NeonDouble>();
extern constinit const InstructionSet neon = {"neon", 10, machine_has, &neon_engines};
}  // namespace isa

}  // namespace vqvae_fast
