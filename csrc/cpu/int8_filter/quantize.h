// Rounds kWidth vectors at a time to integers, and sums the squares of the rounding errors.
#pragma once

#include <math.h>
#include <stdint.h>

#include "../contract.h"
#include "book.h"
#include "centred.h"

namespace vqvae_fast {
namespace {

// PartSquares holds two sums for each vector: `all`, of the squares of one part, and `rest`, of the
// squares of its rounding errors.
template <class Simd>
struct PartSquares {
  typename Simd::Vec all, rest;

  void raise_to(const PartSquares& other, typename Simd::Mask lanes) {
    all = Simd::select(lanes, Simd::max(all, other.all), all);
    rest = Simd::select(lanes, Simd::max(rest, other.rest), rest);
  }
};

template <class Simd>
struct QuantizedPart {
  PartSquares<Simd> squares;
  typename Simd::Ints sum;  // of the integers
};

// Rounds elements [first, last) to integers and packs kPerWord of them into each word. store(word)
// takes one word of each vector. The unit must be large enough for the integers to fit.
template <class Simd, int kPerWord, class Store>
inline QuantizedPart<Simd> quantize_part(const float* x, int64_t first, int64_t last, float unit,
                                         float per_unit, Store store) {
  using Vec = typename Simd::Vec;
  using Ints = typename Simd::Ints;
  constexpr int kBits = 32 / kPerWord;
  const Ints field = Simd::broadcast_int((1 << kBits) - 1), zero = Simd::broadcast_int(0);
  const Vec units = Simd::broadcast(unit), per_units = Simd::broadcast(per_unit);
  Vec all[kPerWord], rest[kPerWord];
  Ints sum = zero;
  VQVAE_FAST_UNROLL
  for (int i = 0; i < kPerWord; ++i) all[i] = rest[i] = Simd::broadcast(0);
  for (int64_t d = first; d < last; d += kPerWord) {
    Ints word = zero;
    VQVAE_FAST_UNROLL
    for (int i = 0; i < kPerWord; ++i) {
      const Vec elements = Simd::load(x + (d + i) * Simd::kWidth);
      const Ints q = Simd::round(Simd::multiply(elements, per_units));
      const Vec short_of = Simd::subtract_product(Simd::to_float(q), units, elements);
      all[i] = Simd::multiply_add(elements, elements, all[i]);
      rest[i] = Simd::multiply_add(short_of, short_of, rest[i]);
      sum = Simd::add(sum, q);
      word = Simd::bit_or(word, Simd::shift_left(Simd::bit_and(q, field), i * kBits));
    }
    store(word);
  }
  for (int i = 1; i < kPerWord; ++i) {
    all[0] = Simd::add(all[0], all[i]);
    rest[0] = Simd::add(rest[0], rest[i]);
  }
  return {{all[0], rest[0]}, sum};
}

template <class Simd>
struct Quantized {
  PartSquares<Simd> wide, narrow;
  typename Simd::Ints narrow_sum;  // of the integers of 8 bits
};

// Rounds the vectors to words. The words of two wide dimensions come first, then the words of four
// other dimensions, whose integers are raised by kOffset (0 or 128). The function calls
// store(w, word) with word w of each vector; a vector that is not `usable` becomes zeros.
template <class Simd, int kOffset, class Store>
inline Quantized<Simd> quantize(const float* x, int64_t num_wide, int64_t dim, float unit,
                                float per_unit, typename Simd::Mask usable, Store store) {
  static_assert(kOffset == 0 || kOffset == 128);
  using Ints = typename Simd::Ints;
  const Ints zero = Simd::broadcast_int(0);
  const Ints sign_bits = Simd::broadcast_int(int32_t(0x80808080));
  int64_t w = 0;
  const auto wide = quantize_part<Simd, 2>(x, 0, num_wide, unit, per_unit, [&](Ints word) {
    store(w++, Simd::select(usable, word, zero));
  });
  const auto narrow = quantize_part<Simd, 4>(x, num_wide, dim, unit, per_unit, [&](Ints word) {
    if (kOffset == 128) word = Simd::bit_xor(word, sign_bits);
    store(w++, Simd::select(usable, word, zero));
  });
  return {wide.squares, narrow.squares, narrow.sum};
}

// Returns the factor that covers the rounding errors of a float32 sum of squares, applied to its
// root.
inline double root_error(int64_t dim) { return 1 + double(dim + 8) * 0x1p-24; }

// This exceeds the root of up to 4096 squares that were flushed to zero. Units are far larger.
constexpr double kLostToUnderflow = 0x1p-56;

// Squares holds the sums of each vector.
template <class Simd>
struct Squares {
  float wide[Simd::kWidth], wide_rest[Simd::kWidth];
  float narrow[Simd::kWidth], narrow_rest[Simd::kWidth];

  explicit Squares(const PartSquares<Simd>& of_wide, const PartSquares<Simd>& of_narrow) {
    Simd::store(wide, of_wide.all);
    Simd::store(wide_rest, of_wide.rest);
    Simd::store(narrow, of_narrow.all);
    Simd::store(narrow_rest, of_narrow.rest);
  }

  // Returns the sizes of vector l, whose norm is given. Subtracting the centre rounded each element
  // once.
  Int8Sizes sizes(int64_t l, double norm, int64_t num_wide, int64_t dim) const {
    const double root = root_error(dim);
    const double lost = (0x1p-23 + reflection_error(num_wide, dim)) * norm + kLostToUnderflow;
    const auto most = [&](const float* of) { return sqrt(double(of[l])) * root + lost; };
    Int8Sizes sizes{norm, 0, most(narrow), 0, most(narrow_rest)};
    if (num_wide > 0) {
      sizes.wide = most(wide);
      sizes.wide_error = most(wide_rest);
    }
    return sizes;
  }
};

}  // namespace
}  // namespace vqvae_fast
