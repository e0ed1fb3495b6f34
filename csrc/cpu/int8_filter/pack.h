// Packs a codebook for an Int8Kernel: quantized, in groups of panels.
#pragma once

#include <math.h>
#include <stdint.h>

#include "../../elements.h"
#include "../../score_bound.h"
#include "../contract.h"
#include "book.h"
#include "centred.h"
#include "quantize.h"

namespace vqvae_fast {
namespace {

template <class In>
VQVAE_FAST_ALONE bool is_finite(const ListedCodes<In>& codes, int64_t k) {
  bool finite = true;
  for (int64_t d = 0; d < codes.dim; ++d) {
    finite &= fabsf(widen(codes.row(k)[d * codes.element_stride])) < float(kInfinity);
  }
  return finite;
}

// Writes codes [first, first + kWidth), centred and reflected, to x. Lanes behind the last code
// repeat that code and are marked as not in range.
template <class Simd, class In>
inline Centred<Simd> reflected_codes(const Int8Book<In>& book, int64_t first, float* x) {
  const ListedCodes<In> codes = book.codes;
  const In* vectors[Simd::kWidth];
  for (int64_t l = 0; l < Simd::kWidth; ++l) {
    vectors[l] = codes.row(smaller(first + l, codes.count - 1));
  }
  Centred<Simd> centred =
      subtract_centre<Simd>(vectors, codes.element_stride, book.centre, codes.dim, x);
  reflect<Simd>(book.reflections, book.num_wide, codes.dim, x);
  centred.in_range &= first_lanes<Simd>(codes.count - first);
  return centred;
}

// Returns the largest magnitudes in groups [first, last): infinity if a finite code is out of
// range.
template <class Kernel, class In>
Int8Extent find_extent(const Int8Book<In>& book, int64_t first, int64_t last, void* scratch) {
  using Simd = typename Kernel::Simd;
  float* x = static_cast<float*>(scratch);
  const ListedCodes<In> codes = book.codes;
  const int64_t end = smaller(last * Kernel::kGroupCodes, codes.count);
  Int8Extent all{0, 0};
  for (int64_t k = first * Kernel::kGroupCodes; k < end; k += Simd::kWidth) {
    const auto in_range = reflected_codes<Simd>(book, k, x).in_range;
    all.raise_to(extent_of<Simd>(x, book.num_wide, codes.dim, in_range));
    uint32_t others = uint32_t{first_lanes<Simd>(end - k)} & ~uint32_t{in_range};
    for (; others != 0; others &= others - 1) {
      if (is_finite(codes, k + lowest_bit(others))) {
        return {float(kInfinity), float(kInfinity)};
      }
    }
  }
  return all;
}

template <class Kernel, class In>
Int8Sizes pack_groups(const Int8Book<In>& book, int64_t first, int64_t last, void* scratch) {
  using Simd = typename Kernel::Simd;
  using Ints = typename Simd::Ints;
  float* x = static_cast<float*>(scratch);
  const int64_t dim = book.codes.dim;
  const float per_unit = 1 / book.unit;
  const auto zero = Simd::broadcast(0), minus_half = Simd::broadcast(-0.5f),
             minus_infinity = Simd::broadcast(-float(kInfinity));
  PartSquares<Simd> wide{zero, zero}, narrow = wide;
  auto squares = zero;
  for (int64_t k = first * Kernel::kGroupCodes; k < last * Kernel::kGroupCodes; k += Simd::kWidth) {
    const Centred<Simd> centred = reflected_codes<Simd>(book, k, x);
    const auto usable = centred.in_range;
    int32_t* group = book.groups + k / Kernel::kGroupCodes * book.group_words();
    const auto quantized = quantize<Simd, Kernel::kCodeOffset>(
        x, book.num_wide, dim, book.unit, per_unit, usable, [&](int64_t w, Ints word) {
          Kernel::pack_codes(group, book.words(), w, k % Kernel::kGroupCodes, word);
        });
    wide.raise_to(quantized.wide, usable);
    narrow.raise_to(quantized.narrow, usable);
    const auto square = centred.squares.rounded();
    squares = Simd::select(usable, Simd::max(squares, square), squares);
    Simd::store(book.half_norm + k,
                Simd::select(usable, Simd::multiply(minus_half, square), minus_infinity));
  }
  // These are upper bounds, so the largest sums need not come from one vector.
  const auto largest = [](typename Simd::Vec v) { return Simd::broadcast(Simd::reduce_max(v)); };
  wide = {largest(wide.all), largest(wide.rest)};
  narrow = {largest(narrow.all), largest(narrow.rest)};
  const double norm = sqrt(double(Simd::reduce_max(squares))) * root_error(dim);
  return Squares<Simd>(wide, narrow).sizes(0, norm, book.num_wide, dim);
}

}  // namespace
}  // namespace vqvae_fast
