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

// Centres and scales the codes of a panel into its columns. squares: receives |e|^2 of what it
// wrote for each code, and infinity for columns without one.
template <class Simd, class In>
void pack_panel(const PackedBook<In>& book, int64_t panel, Compute<In>* out,
                double (&squares)[Simd::kTileCodes]) {
  using T = Compute<In>;
  using Doubles = typename Simd::Doubles;
  constexpr int64_t width = Simd::kTileCodes;
  constexpr int64_t kElements = 8;
  const ListedCodes<In>& codes = book.codes;
  const int64_t stride = codes.element_stride;
  const int64_t count = smaller(width, codes.count - panel * width);
  typename Doubles::Vec sums[width];
  for (int64_t j = 0; j < count; ++j) sums[j] = Doubles::zero();
  for (int64_t d = 0; d < codes.dim; d += kElements) {
    const int64_t elements = smaller(kElements, codes.dim - d);
    // The loop below writes all codes before the next one reads any. A processor cannot serve a
    // wide load from several narrow stores, so a load right behind them waits for the cache.
    T e[width][kElements] = {};
    for (int64_t j = 0; j < count; ++j) {
      const In* code = codes.row(panel * width + j) + d * stride;
      const auto write = [&](int64_t elements) {
        for (int64_t l = 0; l < elements; ++l) {
          e[j][l] = widen(code[l * stride]) * book.scale - book.centre[d + l];
        }
      };
      // A loop of known length costs much less.
      if (elements == kElements) {
        write(kElements);
      } else {
        write(elements);
      }
    }
    for (int64_t j = 0; j < count; ++j) {
      sums[j] = Doubles::add_square(sums[j], Doubles::load(e[j]));
    }
    for (int64_t l = 0; l < elements; ++l) {
      for (int64_t j = 0; j < width; ++j) out[(d + l) * width + j] = e[j][l];
    }
  }
  for (int64_t j = 0; j < width; ++j) squares[j] = j < count ? Doubles::sum(sums[j]) : kInfinity;
}

template <class Simd, class In>
PackedRange pack(const PackedBook<In>& book, int64_t first, int64_t last) {
  using T = Compute<In>;
  constexpr int64_t width = Simd::kTileCodes;
  const int64_t dim = book.codes.dim;
  double largest_square = 0;
  int64_t first_usable = -1;
  for (int64_t panel = first; panel < last; ++panel) {
    T* out = book.panels + panel * dim * width;
    double squares[width];
    pack_panel<Simd>(book, panel, out, squares);
    for (int64_t j = 0; j < width; ++j) {
      const bool usable = squares[j] < kInfinity;  // false for NaN too
      if (!usable) {
        for (int64_t d = 0; d < dim; ++d) out[d * width + j] = 0;
      } else {
        largest_square = larger(largest_square, squares[j]);
        if (first_usable < 0) first_usable = panel * width + j;
      }
      book.half_norm[panel * width + j] = usable ? T(-0.5 * squares[j]) : -T(kInfinity);
    }
  }
  return {sqrt(largest_square), first_usable};
}

}  // namespace
}  // namespace vqvae_fast
