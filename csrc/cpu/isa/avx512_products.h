// This file defines the integer products of AVX-512 VNNI.
#pragma once

#include <immintrin.h>

#include "../int8_filter/book.h"

namespace vqvae_fast {
namespace {

// With the intrinsics, GCC 12 copies the accumulator before each product.
struct Vnni {
  static constexpr int kLargestRow = kLargestNarrow;
  static constexpr int64_t kSmallestDim = 8, kFewestElements = 1 << 14;

  VQVAE_FAST_INLINE static void add(__m512i& sum, __m512i codes, __m512i row) {
#if defined(__GNUC__)
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(row));
#else
    sum = _mm512_dpbusd_epi32(sum, codes, row);
#endif
  }
  VQVAE_FAST_INLINE static void add_wide(__m512i& sum, __m512i codes, __m512i row) {
#if defined(__GNUC__)
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(row));
#else
    sum = _mm512_dpwssd_epi32(sum, codes, row);
#endif
  }
};

}  // namespace
}  // namespace vqvae_fast
