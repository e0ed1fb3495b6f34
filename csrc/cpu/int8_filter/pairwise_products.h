// Multiplies for the int8 filter where no instruction adds products of bytes to sums of 32 bits.
#pragma once

#include <stdint.h>

#include "book.h"

namespace vqvae_fast {
namespace {

// PairwiseProducts are the Products of a TiledKernel. Two neighbouring products of bytes are added
// in 16 bits, where a sum that does not fit is cut off. So the integers of rows are kept so small
// that all sums fit.
template <class Simd>
struct PairwiseProducts {
  using Ints = typename Simd::Ints;
#ifdef VQVAE_FAST_TEST_CUT_OFF
  static constexpr int kLargestRow = 127;
#else
  static constexpr int kLargestRow = 64;
  static_assert(2 * (kLargestNarrow + 128) * kLargestRow <= INT16_MAX);
#endif
  static constexpr int64_t kSmallestDim = 16, kFewestElements = 1 << 15;

  VQVAE_FAST_INLINE static void add(Ints& sum, Ints codes, Ints row) {
    sum = Simd::add(sum, Simd::add_words(Simd::multiply_bytes(codes, row)));
  }
  VQVAE_FAST_INLINE static void add_wide(Ints& sum, Ints codes, Ints row) {
    sum = Simd::add(sum, Simd::multiply_words(codes, row));
  }
};

}  // namespace
}  // namespace vqvae_fast
