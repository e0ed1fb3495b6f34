// Bits and elements. Everything here is in an unnamed namespace: the file is
// compiled under several instruction sets, and no function of one may serve another.
#pragma once

#include <stdint.h>
#include <string.h>

#include "contract.h"

namespace vqvae_fast {
namespace {

inline float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(BFloat16 value) { return bits_to_float(uint32_t{value.bits} << 16); }

// Branch-free, so that loops over it vectorise: the exponent is re-biased by a multiplication
// (which also normalises subnormals), and only infinities and NaNs need their exponent set.
inline float widen(Half value) {
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  const float scaled = bits_to_float(magnitude << 13) * 0x1p112f;
  uint32_t bits;
  memcpy(&bits, &scaled, sizeof bits);
  bits |= magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  return bits_to_float(bits | sign);
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
