// Quantizing a codebook to integers. AVX-512.
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#include "../elements.h"
#include "../score_bound.h"
#include "contract.h"
#include "int8_book.h"
#include "int8_quantize.h"

namespace vqvae_fast {
namespace {

inline __m512 load_widened(__mmask16 lanes, const float* p) {
  return _mm512_maskz_loadu_ps(lanes, p);
}
inline __m512 load_widened(__mmask16 lanes, const BFloat16* p) {
  const __m256i bits = _mm256_maskz_loadu_epi16(lanes, p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline __m512 load_widened(__mmask16 lanes, const Half* p) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, p));
}

// Elements [d, d + 16) of a code; zero behind the last.
template <class In>
inline __m512 elements_of(const Codes<In>& codes, int64_t k, int64_t d) {
  const In* code = codes.row(k);
  if (codes.element_stride == 1) return load_widened(first_lanes(codes.dim - d), code + d);
  float elements[16] = {};
  for (int64_t l = 0; l < smaller(16, codes.dim - d); ++l) {
    elements[l] = widen(code[(d + l) * codes.element_stride]);
  }
  return _mm512_loadu_ps(elements);
}

// Code k less the centre, to x ([padded D]): its squared norm, and whether all elements are finite.
struct Centred {
  float square;
  bool finite;
};

template <class In>
inline Centred centre_code(const Codes<In>& codes, const float* centre, int64_t k, float* x) {
  const __m512 infinity = _mm512_set1_ps(float(kInfinity));
  __m512 squares = _mm512_setzero_ps();
  bool finite = true;
  for (int64_t d = 0; d < codes.dim; d += 16) {
    const __mmask16 lanes = first_lanes(codes.dim - d);
    const __m512 e = elements_of(codes, k, d);
    finite &= _mm512_cmp_ps_mask(_mm512_abs_ps(e), infinity, _CMP_LT_OQ) == 0xffff;
    const __m512 centred = _mm512_maskz_sub_ps(lanes, e, _mm512_maskz_loadu_ps(lanes, centre + d));
    squares = _mm512_fmadd_ps(centred, centred, squares);
    _mm512_storeu_ps(x + d, centred);
  }
  return {_mm512_reduce_add_ps(squares), finite};
}

constexpr int64_t kCodesTogether = 4;

// Codes [first, first + 4) less the centre and reflected, to x ([4][padded D]).
template <class In>
inline void reflected_codes(const Int8Book<In>& book, int64_t first, float* x, Centred* centred) {
  const Codes<In> codes = book.codes;
  const int64_t padded = padded_dim(codes.dim);
  for (int64_t j = 0; j < kCodesTogether; ++j) {
    const int64_t k = first + j;
    centred[j] =
        k < codes.count ? centre_code(codes, book.centre, k, x + j * padded) : Centred{0, false};
  }
  reflect(book.reflections, book.num_wide, codes.dim, x, kCodesTogether);
}

// The largest magnitudes in groups [first, last); infinite where squares leave float's range.
template <class In>
Int8Extent extent_int8(const Int8Book<In>& book, int64_t first, int64_t last) {
  const int64_t dim = book.codes.dim;
  float x[kCodesTogether * kInt8LargestDim] = {};
  Int8Extent all{0, 0};
  for (int64_t k = first * kInt8GroupCodes; k < last * kInt8GroupCodes; k += kCodesTogether) {
    Centred centred[kCodesTogether];
    reflected_codes(book, k, x, centred);
    for (int64_t j = 0; j < kCodesTogether; ++j) {
      if (!centred[j].finite) continue;
      if (!(centred[j].square < float(kInfinity))) return {float(kInfinity), float(kInfinity)};
      const Int8Extent extent = extent_of(x + j * padded_dim(dim), book.num_wide, dim);
      all.wide = extent.wide > all.wide ? extent.wide : all.wide;
      all.narrow = extent.narrow > all.narrow ? extent.narrow : all.narrow;
    }
  }
  return all;
}

template <class In>
Int8Sizes pack_int8(const Int8Book<In>& book, int64_t first, int64_t last) {
  const int64_t dim = book.codes.dim, words = book.words();
  const float per_unit = 1 / book.unit;
  float x[kCodesTogether * kInt8LargestDim] = {};
  Int8Sizes largest{};
  for (int64_t k = first * kInt8GroupCodes; k < last * kInt8GroupCodes; k += kCodesTogether) {
    Centred centred[kCodesTogether];
    reflected_codes(book, k, x, centred);
    uint8_t* panel = book.panels + k / kInt8PanelCodes * book.panel_bytes();
    for (int64_t j = 0; j < kCodesTogether; ++j) {
      int32_t* out = reinterpret_cast<int32_t*>(panel) + k % kInt8PanelCodes + j;
      if (!centred[j].finite) {
        for (int64_t w = 0; w < words; ++w) out[w * kInt8PanelCodes] = 0;
        book.half_norm[k + j] = float(kInfinity);
        continue;
      }
      const Quantized quantized = quantize(x + j * padded_dim(dim), book.num_wide, dim, book.unit,
                                           per_unit, 0x80, out, kInt8PanelCodes);
      book.half_norm[k + j] = 0.5f * centred[j].square;
      const double norm = sqrt(double(centred[j].square)) * root_error(dim);
      largest.raise_to(sizes_of(quantized, norm, book.num_wide, dim));
    }
  }
  return largest;
}

}  // namespace
}  // namespace vqvae_fast
