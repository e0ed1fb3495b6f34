// Runs multiply-adds of one instruction set and number format, in registers (x86-64).
//
// kernels.py defines the instructions (INSTRUCTIONS), the processor's required features (SUPPORTED)
// and the registers' size (VECTOR_BYTES, TARGET). This file is compiled once for each kernel, so
// that a compiler or assembler that does not know one instruction still measures the others. It
// uses assembler, because with intrinsics GCC 12 copies the accumulator before every integer
// product.

#include <cstdint>

namespace {

typedef std::int32_t Vector __attribute__((vector_size(VECTOR_BYTES)));

// This many independent sums cover latency x ports of today's cores (4-5 clocks x 2) and leave
// registers for the operands.
constexpr int kSums = VECTOR_BYTES == 64 ? 24 : 12;

// This is a moderate number in every format: 60 as a byte, 15420 as 16 bits, 0.011 as bfloat16 or
// float32.
constexpr std::int32_t kFactor = 0x3c3c3c3c;

}  // namespace

extern "C" {

int loop_is_supported() { return SUPPORTED; }

// One step is an instruction (or the group that stands for it) on each of the sums.
std::int64_t loop_sums() { return kSums; }

__attribute__((target(TARGET))) void loop(std::int64_t steps, char*, std::int64_t) {
  Vector sums[kSums] = {};
  const Vector x = Vector{} + kFactor, ones = Vector{} + 0x00010001;
  for (std::int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 24
    for (int i = 0; i < kSums; ++i) {
      Vector scratch;
      __asm__ volatile(INSTRUCTIONS
                       : [sum] "+v"(sums[i]), [scratch] "=&v"(scratch)
                       : [x] "v"(x), [ones] "v"(ones));
    }
  }
}
}
