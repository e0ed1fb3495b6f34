// machines: x86_64
// flags: -mavx2 -mfma -mavxvnni
// assembler: {vex} vpdpbusd %ymm0, %ymm0, %ymm0
// flags: -fno-tree-slp-vectorize
//
// The kernels use vectors explicitly. GCC's SLP vectorizer would also pair up scalars, such as the
// addresses of three codes; they would go through memory, which costs more than it saves.
//
// This file is the int8 filter for AVX-VNNI: 16 registers hold 6 rows x 2 vectors of codes (12
// accumulators) and the operands.
#include <cpuid.h>

#include "../int8_filter/tiled_kernel.h"
#include "avx2_simd.h"

namespace vqvae_fast {
namespace {

// With the intrinsics, GCC 12 copies the accumulator before each product. {vex} asks for AVX-VNNI's
// encoding, because AVX-512 VNNI has instructions of the same names.
struct AvxVnni {
  static constexpr int kLargestRow = kLargestNarrow;
  static constexpr int64_t kSmallestDim = 8, kFewestElements = 1 << 14;

  static void add(__m256i& sum, __m256i codes, __m256i row) {
#if defined(__GNUC__)
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(row));
#else
    sum = _mm256_dpbusd_avx_epi32(sum, codes, row);
#endif
  }
  static void add_wide(__m256i& sum, __m256i codes, __m256i row) {
#if defined(__GNUC__)
    __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(row));
#else
    sum = _mm256_dpwssd_avx_epi32(sum, codes, row);
#endif
  }
};

constexpr Int8Filters kFilters = make_filters<TiledKernel<Avx2Filter, AvxVnni, 6>>();

// Older versions of Clang refuse __builtin_cpu_supports("avxvnni"). The system saves the registers
// if it does for AVX2.
VQVAE_FAST_PROBE bool machine_has() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return false;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  __cpuid_count(7, 1, eax, ebx, ecx, edx);
  constexpr unsigned kAvxVnni = 1 << 4;
  return (eax & kAvxVnni) != 0;
}

}  // namespace

namespace isa {
extern const Engines avx2_engines;  // the engines of avx2.cpp
extern constinit const InstructionSet avxvnni = {"avxvnni", 15, machine_has, &avx2_engines,
                                                 &kFilters};
}  // namespace isa

}  // namespace vqvae_fast
