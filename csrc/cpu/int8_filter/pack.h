// Quantizing a codebook to integers. AVX-512.
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#include "../../elements.h"
#include "../../score_bound.h"
#include "../contract.h"
#include "book.h"
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

// Codes [first, first + 16) less the centre and reflected, to x. Those behind the last are out of
// range.
template <class In>
inline Centred reflected_codes(const Int8Book<In>& book, int64_t first, float* x) {
  const ListedCodes<In> codes = book.codes;
  const In* sixteen[kAbreast];
  for (int64_t l = 0; l < kAbreast; ++l)
    sixteen[l] = codes.row(smaller(first + l, codes.count - 1));
  Centred centred = subtract_centre(sixteen, codes.element_stride, book.centre, codes.dim, x);
  reflect(book.reflections, book.num_wide, codes.dim, x);
  centred.in_range &= first < codes.count ? first_lanes(codes.count - first) : __mmask16{0};
  return centred;
}

// The largest magnitudes in groups [first, last); infinite where a code is out of range although
// it is finite.
template <class In>
Int8Extent extent_int8(const Int8Book<In>& book, int64_t first, int64_t last, void* scratch) {
  float* x = static_cast<float*>(scratch);
  const ListedCodes<In> codes = book.codes;
  const int64_t end = smaller(last * kInt8GroupCodes, codes.count);
  Int8Extent all{0, 0};
  for (int64_t k = first * kInt8GroupCodes; k < end; k += kAbreast) {
    const __mmask16 in_range = reflected_codes(book, k, x).in_range;
    all.raise_to(extent_of(x, book.num_wide, codes.dim, in_range));
    uint32_t others = uint32_t{first_lanes(end - k)} & ~uint32_t{in_range};
    for (; others != 0; others &= others - 1) {
      if (is_finite(codes, k + lowest_bit(others))) {
        return {float(kInfinity), float(kInfinity)};
      }
    }
  }
  return all;
}

inline __m512 all_lanes_largest(__m512 v) { return _mm512_set1_ps(_mm512_reduce_max_ps(v)); }

template <class In>
Int8Sizes pack_int8(const Int8Book<In>& book, int64_t first, int64_t last, void* scratch) {
  float* x = static_cast<float*>(scratch);
  const int64_t dim = book.codes.dim;
  const float per_unit = 1 / book.unit;
  const __m512 infinity = _mm512_set1_ps(float(kInfinity));
  PartSquares wide{_mm512_setzero_ps(), _mm512_setzero_ps()}, narrow = wide;
  __m512 squares = _mm512_setzero_ps();
  for (int64_t k = first * kInt8GroupCodes; k < last * kInt8GroupCodes; k += kAbreast) {
    const Centred centred = reflected_codes(book, k, x);
    const __mmask16 usable = centred.in_range;
    uint8_t* panel = book.panels + k / kInt8PanelCodes * book.panel_bytes();
    int32_t* out = reinterpret_cast<int32_t*>(panel) + k % kInt8PanelCodes;
    const Quantized quantized = quantize(x, book.num_wide, dim, book.unit, per_unit, 0x80,
                                         {out, kInt8PanelCodes, 0xffff, usable});
    wide.raise_to(quantized.wide, usable);
    narrow.raise_to(quantized.narrow, usable);
    squares = _mm512_mask_max_ps(squares, usable, squares, centred.squares());
    const __m512 half_norms = _mm512_mul_ps(_mm512_set1_ps(0.5f), centred.squares());
    _mm512_storeu_ps(book.half_norm + k, _mm512_mask_mov_ps(infinity, usable, half_norms));
  }
  // The largest sums, wherever they are, as those of one vector.
  wide = {all_lanes_largest(wide.all), all_lanes_largest(wide.rest)};
  narrow = {all_lanes_largest(narrow.all), all_lanes_largest(narrow.rest)};
  const double norm = sqrt(double(_mm512_reduce_max_ps(squares))) * root_error(dim);
  return sizes_of(Squares(wide, narrow), 0, norm, book.num_wide, dim);
}

}  // namespace
}  // namespace vqvae_fast
