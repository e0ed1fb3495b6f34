// Packs a codebook into panels of centred and scaled codes.
#pragma once

#include <math.h>
#include <stdint.h>

#include "../../elements.h"
#include "../contract.h"
#include "../exact.h"

namespace vqvae_fast {
namespace {

// Returns the largest magnitude of codes [first, last) without NaN and infinities: a code with one
// is never chosen and must not set the scale. Magnitudes are compared as bits, because they have
// the same order and integers vectorise.
template <class In>
Compute<In> largest_magnitude(const ListedCodes<In>& codes, int64_t first, int64_t last) {
  using T = Compute<In>;
  using Bits = decltype(to_bits(T()));
  constexpr Bits all_but_sign = ~Bits{0} >> 1;
  const Bits infinity = to_bits(T(kInfinity));
  Bits largest = 0;
  const auto include = [&](In element) {
    const Bits magnitude = to_bits(widen(element)) & all_but_sign;
    // This is a mask, because GCC would join a condition with the next line's and then not
    // vectorise.
    const Bits finite = magnitude & (Bits{0} - Bits{magnitude < infinity});
    largest = finite > largest ? finite : largest;
  };
  if (codes.listed == nullptr && codes.element_stride == 1 && codes.row_stride == codes.dim) {
    const In* elements = codes.row(first);
    for (int64_t i = 0; i < (last - first) * codes.dim; ++i) include(elements[i]);
  } else {
    for (int64_t k = first; k < last; ++k) {
      for (int64_t d = 0; d < codes.dim; ++d) include(codes.row(k)[d * codes.element_stride]);
    }
  }
  return from_bits(largest);
}

// Centres and scales one code into its column of a panel; returns |e|^2 of what it wrote.
template <class Simd, class In>
double pack_code(const PackedBook<In>& book, int64_t k, Compute<In>* column) {
  using T = Compute<In>;
  using Doubles = typename Simd::Doubles;
  const int64_t dim = book.codes.dim;
  const int64_t stride = book.codes.element_stride;
  const In* code = book.codes.row(k);
  typename Doubles::Vec square = Doubles::zero();
  for (int64_t d = 0; d < dim; d += 8) {
    T e[8] = {};
    const auto write = [&](int64_t count) {
      for (int64_t l = 0; l < count; ++l) {
        e[l] = widen(code[(d + l) * stride]) * book.scale - book.centre[d + l];
      }
      for (int64_t l = 0; l < count; ++l) column[(d + l) * Simd::kTileCodes] = e[l];
    };
    // A loop of known length costs much less.
    if (dim - d >= 8) {
      write(8);
    } else {
      write(dim - d);
    }
    square = Doubles::add_square(square, Doubles::load(e));
  }
  return Doubles::sum(square);
}

template <class Simd, class In>
PackedRange pack(const PackedBook<In>& book, int64_t first, int64_t last) {
  using T = Compute<In>;
  constexpr int64_t width = Simd::kTileCodes;
  const ListedCodes<In>& codes = book.codes;
  const int64_t dim = codes.dim;
  double largest_square = 0;
  int64_t first_usable = -1;
  for (int64_t panel = first; panel < last; ++panel) {
    T* out = book.panels + panel * dim * width;
    for (int64_t j = 0; j < width; ++j) {
      const int64_t k = panel * width + j;
      double square = kInfinity;
      if (k < codes.count) square = pack_code<Simd>(book, k, out + j);
      const bool usable = square < kInfinity;  // false for NaN too
      if (!usable) {
        for (int64_t d = 0; d < dim; ++d) out[d * width + j] = 0;
      } else {
        largest_square = larger(largest_square, square);
        if (first_usable < 0) first_usable = k;
      }
      book.half_norm[panel * width + j] = usable ? T(-0.5 * square) : -T(kInfinity);
    }
  }
  return {sqrt(largest_square), first_usable};
}

}  // namespace
}  // namespace vqvae_fast
