// Bits and elements. Everything here is in an unnamed namespace: the file is
// compiled under several instruction sets, and no function of one may serve another.
#pragma once

#include <stdint.h>
#include <string.h>

#include "contract.h"

namespace vqvae_fast {
namespace {

template <class To, class From>
inline To cast_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
inline uint32_t to_bits(float value) { return cast_bits<uint32_t>(value); }
inline uint64_t to_bits(double value) { return cast_bits<uint64_t>(value); }
inline float from_bits(uint32_t bits) { return cast_bits<float>(bits); }
inline double from_bits(uint64_t bits) { return cast_bits<double>(bits); }

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(BFloat16 value) { return from_bits(uint32_t{value.bits} << 16); }

// Branch-free, so that loops over it vectorise: the exponent is re-biased by a multiplication
// (which also normalises subnormals), and only infinities and NaNs need their exponent set.
inline float widen(Half value) {
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  const float scaled = from_bits(magnitude << 13) * 0x1p112f;
  const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  return from_bits(to_bits(scaled) | special | sign);
}

inline int lowest_bit(uint32_t bits) {
#if defined(__GNUC__)
  return __builtin_ctz(bits);
#else
  int bit = 0;
  while (!(bits >> bit & 1)) ++bit;
  return bit;
#endif
}

}  // namespace
}  // namespace vqvae_fast
