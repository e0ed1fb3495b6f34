// This file converts elements and reads their bits. Everything is in an unnamed namespace, because
// the file is compiled for several instruction sets (and for the GPU), and the linker must not use
// a function of one in another.
#pragma once

#include <stdint.h>
#include <string.h>

#include "rows.h"

namespace vqvae_fast {
namespace {

template <class To, class From>
VQVAE_FAST_INLINE To cast_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
VQVAE_FAST_INLINE uint32_t to_bits(float value) { return cast_bits<uint32_t>(value); }
VQVAE_FAST_INLINE uint64_t to_bits(double value) { return cast_bits<uint64_t>(value); }
VQVAE_FAST_INLINE float from_bits(uint32_t bits) { return cast_bits<float>(bits); }
VQVAE_FAST_INLINE double from_bits(uint64_t bits) { return cast_bits<double>(bits); }

VQVAE_FAST_INLINE float widen(float value) { return value; }
VQVAE_FAST_INLINE double widen(double value) { return value; }
VQVAE_FAST_INLINE float widen(BFloat16 value) { return from_bits(uint32_t{value.bits} << 16); }

// This function has no branch, so that loops over it vectorise: the exponent is re-biased by a
// multiplication (which also normalises subnormals), and only infinities and NaNs need their
// exponent set.
VQVAE_FAST_INLINE float widen(Half value) {
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  const float scaled = from_bits(magnitude << 13) * 0x1p112f;
  const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  return from_bits(to_bits(scaled) | special | sign);
}

inline int count_bits(uint32_t bits) {
#if defined(__GNUC__)
  return __builtin_popcount(bits);
#else
  int count = 0;
  for (; bits != 0; bits &= bits - 1) ++count;
  return count;
#endif
}

inline int lowest_bit(uint64_t bits) {
#if defined(__GNUC__)
  return __builtin_ctzll(bits);
#else
  int bit = 0;
  while (!(bits >> bit & 1)) ++bit;
  return bit;
#endif
}

}  // namespace
}  // namespace vqvae_fast
