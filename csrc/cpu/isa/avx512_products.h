// This file defines the integer products of AVX-512 VNNI. With the intrinsics, GCC 12 copies the
// accumulator before each of them.
#pragma once

#include <immintrin.h>

#include "../../rows.h"

namespace vqvae_fast {
namespace {

// Adds four products of unsigned bytes of `codes` and signed bytes of `row` to each lane.
VQVAE_FAST_INLINE void add_products(__m512i& sum, __m512i codes, __m512i row) {
#if defined(__GNUC__)
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(row));
#else
  sum = _mm512_dpbusd_epi32(sum, codes, row);
#endif
}

// Adds two products of signed 16-bit integers to each lane.
VQVAE_FAST_INLINE void add_wide_products(__m512i& sum, __m512i codes, __m512i row) {
#if defined(__GNUC__)
  __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(row));
#else
  sum = _mm512_dpwssd_epi32(sum, codes, row);
#endif
}

}  // namespace
}  // namespace vqvae_fast
