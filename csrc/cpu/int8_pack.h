// Quantizing a codebook to int8. AVX-512.
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#include "../elements.h"
#include "../score_bound.h"
#include "contract.h"
#include "int8_book.h"

namespace vqvae_fast {
namespace {

// What a float32 sum of squares in 16 lanes may be short of, as a factor on its root.
inline double root_error(int64_t dim) { return 1 + double(dim / 16 + 8) * 0x1p-24; }

// More than the root of up to 4096 squares that were flushed to zero; units are far above it.
constexpr double kLostToUnderflow = 0x1p-56;

inline __mmask16 first_lanes(int64_t count) {
  return count >= 16 ? __mmask16(0xffff) : __mmask16((1u << count) - 1);
}

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

// The same less the centre.
inline __m512 less_centre(__m512 elements, const float* centre, int64_t dim, int64_t d) {
  const __mmask16 lanes = first_lanes(dim - d);
  return _mm512_maskz_sub_ps(lanes, elements, _mm512_maskz_loadu_ps(lanes, centre + d));
}

// The largest magnitude less the centre; infinite where that leaves float's range.
template <class In>
float largest_centred(const Codes<In>& codes, const float* centre, int64_t first, int64_t last) {
  const __m512 infinity = _mm512_set1_ps(float(kInfinity));
  __m512 largest = _mm512_setzero_ps();
  for (int64_t k = first; k < last; ++k) {
    for (int64_t d = 0; d < codes.dim; d += 16) {
      const __m512 e = elements_of(codes, k, d);
      const __mmask16 finite = _mm512_cmp_ps_mask(_mm512_abs_ps(e), infinity, _CMP_LT_OQ);
      const __m512 centred = _mm512_abs_ps(less_centre(e, centre, codes.dim, d));
      largest = _mm512_mask_max_ps(largest, finite, largest, centred);
    }
  }
  return _mm512_reduce_max_ps(largest);
}

// Sixteen elements as integers: q, and in `rest` what it is short of.
inline __m512i to_integers(__m512 elements, __m512 per_unit, __m512 unit, __m512* rest) {
  const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(elements, per_unit));
  *rest = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(q), unit, elements);
  return q;
}

// Writes four words of four dimensions each, `stride` words apart, as far as there are `words`.
inline void scatter_words(__m128i bytes, int32_t* out, int64_t stride, int64_t words) {
  if (words > 0) out[0] = _mm_extract_epi32(bytes, 0);
  if (words > 1) out[stride] = _mm_extract_epi32(bytes, 1);
  if (words > 2) out[2 * stride] = _mm_extract_epi32(bytes, 2);
  if (words > 3) out[3 * stride] = _mm_extract_epi32(bytes, 3);
}

template <class In>
Int8Range pack_int8(const Int8Book<In>& book, int64_t first, int64_t last) {
  const int64_t dim = book.codes.dim;
  const __m512 unit = _mm512_set1_ps(book.unit);
  const __m512 per_unit = _mm512_set1_ps(1 / book.unit);
  const __m128i to_unsigned = _mm_set1_epi8(char(0x80));
  float most = 0, most_rest = 0;
  for (int64_t k = first * kInt8GroupCodes; k < last * kInt8GroupCodes; ++k) {
    uint8_t* panel = book.panels + k / kInt8PanelCodes * book.panel_bytes();
    int32_t* out = reinterpret_cast<int32_t*>(panel) + k % kInt8PanelCodes;
    if (k >= book.codes.count) {
      for (int64_t w = 0; w < book.words(); ++w) out[w * kInt8PanelCodes] = 0;
      book.half_norm[k] = float(kInfinity);
      continue;
    }
    __m512 squares = _mm512_setzero_ps(), rest_squares = _mm512_setzero_ps();
    for (int64_t d = 0; d < dim; d += 16) {
      const __m512 e = less_centre(elements_of(book.codes, k, d), book.centre, dim, d);
      __m512 rest;
      const __m512i q = to_integers(e, per_unit, unit, &rest);
      squares = _mm512_fmadd_ps(e, e, squares);
      rest_squares = _mm512_fmadd_ps(rest, rest, rest_squares);
      scatter_words(_mm_xor_si128(_mm512_cvtsepi32_epi8(q), to_unsigned),
                    out + d / 4 * kInt8PanelCodes, kInt8PanelCodes, book.words() - d / 4);
    }
    const float square = _mm512_reduce_add_ps(squares);
    const bool usable = square < float(kInfinity);  // false for NaN too
    book.half_norm[k] = usable ? 0.5f * square : float(kInfinity);
    if (!usable) continue;
    const float rest_square = _mm512_reduce_add_ps(rest_squares);
    most = square > most ? square : most;
    most_rest = rest_square > most_rest ? rest_square : most_rest;
  }
  const double max_norm = sqrt(double(most)) * root_error(dim);
  // Subtracting the centre rounded each element once.
  return {max_norm,
          sqrt(double(most_rest)) * root_error(dim) + 0x1p-23 * max_norm + kLostToUnderflow};
}

}  // namespace
}  // namespace vqvae_fast
