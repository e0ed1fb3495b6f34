// Rounds to the type of an output: to nearest, ties to even, as torch rounds.
#pragma once

#include <stdint.h>

#include "../elements.h"
#include "../rows.h"

namespace vqvae_fast {
namespace {

template <class Out>
struct Narrow {
  VQVAE_FAST_INLINE static Out from(Out value) { return value; }
};

template <>
struct Narrow<BFloat16> {
  VQVAE_FAST_INLINE static BFloat16 from(float value) {
    const uint32_t bits = to_bits(value);
    if (value != value) return {0x7fc0};
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
  }
};

template <>
struct Narrow<Half> {
  VQVAE_FAST_INLINE static Half from(float value) {
    const uint32_t bits = to_bits(value), magnitude = bits & 0x7fffffffu;
    const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
    if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65520 and more
    if (magnitude < 0x38800000u) {
      // The result is subnormal: the addition rounds to a multiple of 2^-24, and the low bits then
      // hold the multiple.
      const uint32_t count = to_bits(from_bits(magnitude) + 0.5f) - to_bits(0.5f);
      return {static_cast<uint16_t>(sign | count)};
    }
    // This rounds to 10 bits and re-biases the exponent.
    const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1) - (112u << 23);
    return {static_cast<uint16_t>(sign | rounded >> 13)};
  }
};

}  // namespace
}  // namespace vqvae_fast
