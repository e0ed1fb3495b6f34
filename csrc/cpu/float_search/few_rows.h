// Searches for a few rows, for which packing the codebook would cost more than reading it as it is.
#pragma once

#include <stdint.h>
#include <string.h>

#include "../../elements.h"
#include "../../score_bound.h"
#include "../best.h"
#include "../contract.h"
#include "../exact.h"
#include "../raw_rows.h"

namespace vqvae_fast {
namespace {

constexpr int64_t kRowsTogether = 4;  // rows that share each load of a code

// Loads at most `count` elements from p on and fills the rest with zeros.
template <class Simd, class In>
inline typename Simd::Vec load_some(const In* p, int64_t count) {
  using T = typename Simd::T;
  if constexpr (sizeof(In) == sizeof(T)) {
    if (count >= Simd::kWidth) return Simd::load(p);
  }
  T elements[Simd::kWidth] = {};
  for (int64_t l = 0; l < smaller(Simd::kWidth, count); ++l) elements[l] = widen(p[l]);
  return Simd::load(elements);
}

// Writes the distances of kRows rows from codes [k, k + kCodes) to distances[row * stride + code].
// Each is accurate to about D roundings, because a sum of squares has no cancellation.
template <class Simd, int kRows, int kCodes, class In>
inline void sum_squares(const typename Simd::T* const* rows, const Codes<In>& codes, int64_t k,
                        typename Simd::T* distances, int64_t stride) {
  using Vec = typename Simd::Vec;
  Vec sums[kRows][kCodes];
  VQVAE_FAST_UNROLL
  for (int i = 0; i < kRows; ++i) {
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kCodes; ++j) sums[i][j] = Simd::broadcast(0);
  }
  for (int64_t d = 0; d < codes.dim; d += Simd::kWidth) {
    Vec z[kRows];
    VQVAE_FAST_UNROLL
    for (int i = 0; i < kRows; ++i) z[i] = load_some<Simd>(rows[i] + d, codes.dim - d);
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kCodes; ++j) {
      const Vec e = load_some<Simd>(codes.row(k + j) + d, codes.dim - d);
      VQVAE_FAST_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const Vec difference = Simd::subtract(z[i], e);
        sums[i][j] = Simd::multiply_add(difference, difference, sums[i][j]);
      }
    }
  }
  VQVAE_FAST_UNROLL
  for (int i = 0; i < kRows; ++i) {
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kCodes; ++j) distances[i * stride + j] = Simd::reduce_add(sums[i][j]);
  }
}

template <class Simd, int kRows, int kCodes, class In>
VQVAE_FAST_ALONE void approximate_distances(const typename Simd::T* const* rows,
                                            const Codes<In>& codes, int64_t first_code,
                                            int64_t last_code, typename Simd::T* distances) {
  const Codes<In> local = codes;  // a copy stays in registers: no write can alias it
  const int64_t stride = last_code - first_code;
  int64_t k = first_code;
  for (; k + kCodes <= last_code; k += kCodes) {
    sum_squares<Simd, kRows, kCodes>(rows, local, k, distances + (k - first_code), stride);
  }
  for (; k < last_code; ++k) {
    sum_squares<Simd, kRows, 1>(rows, local, k, distances + (k - first_code), stride);
  }
}

// Returns the largest distance that can be computed for the nearest code, if `smallest` is the
// least computed one. It allows for D + 4 roundings in both, for those of float64, and for squares
// that were flushed to zero.
template <class T>
inline T reach_of(T smallest, int64_t dim) {
  const double error = 5 * double(dim + 8) * Precision<T>::unit;
  const double flushed = 4 * double(dim) * Precision<T>::tiny;
  return T(double(smallest) * (1 + error) + flushed);
}

// Returns the least distance that is not NaN; infinity if there is none.
template <class Simd>
inline typename Simd::T smallest_of(const typename Simd::T* distances, int64_t count) {
  using T = typename Simd::T;
  auto least = Simd::broadcast(T(kInfinity));
  int64_t i = 0;
  for (; i + Simd::kWidth <= count; i += Simd::kWidth) {
    least = Simd::min(Simd::load(distances + i), least);  // if one is NaN, the second
  }
  T lanes[Simd::kWidth];
  Simd::store(lanes, least);
  T smallest = T(kInfinity);
  for (int l = 0; l < Simd::kWidth; ++l) smallest = lanes[l] < smallest ? lanes[l] : smallest;
  for (; i < count; ++i) smallest = distances[i] < smallest ? distances[i] : smallest;
  return smallest;
}

// Measures the codes within reach. Copies of the nearest so far are skipped, because the lower
// index wins.
template <class Simd, class In>
inline Best measure_within(typename Simd::T reach, const typename Simd::T* distances,
                           const Codes<In>& codes, const typename Simd::T* raw, int64_t first_code,
                           int64_t count) {
  Best best{kInfinity, kNoCode};
  const In* nearest = nullptr;
  const auto consider = [&](int64_t k) {
    const In* code = codes.row(k);
    if (nearest != nullptr && memcmp(code, nearest, codes.dim * sizeof(In)) == 0) return;
    measure_code<Simd>(codes, raw, k, best);
    if (best.index() == k) nearest = code;
  };
  const auto bound = Simd::broadcast(reach);
  int64_t i = 0;
  for (; i + Simd::kWidth <= count; i += Simd::kWidth) {
    uint32_t lanes = Simd::at_least(bound, Simd::load(distances + i));
    for (; lanes != 0; lanes &= lanes - 1) {
      consider(first_code + i + lowest_bit(lanes));
    }
  }
  for (; i < count; ++i) {
    if (distances[i] <= reach) consider(first_code + i);
  }
  return best;
}

// Finds the nearest code among [first_code, last_code) for all rows. Returns false, and `out` then
// has no meaning, if `search` must serve: a row or all codes are not finite, or squares could
// overflow.
template <class Simd, class In>
bool search_few_rows(const Codes<In>& codes, const Rows<const In>& z, int64_t first_code,
                     int64_t last_code, void* scratch, Nearest out) {
  using T = typename Simd::T;
  const int64_t num_codes = last_code - first_code;
  T* copies = static_cast<T*>(scratch);
  T* distances = copies + kRowsTogether * codes.dim;
  for (int64_t row = 0; row < z.count; row += kRowsTogether) {
    const int64_t count = smaller(kRowsTogether, z.count - row);
    const T* raw[kRowsTogether];
    read_rows(z, row, count, copies, raw);
    if (count == 1) {
      approximate_distances<Simd, 1, 8>(raw, codes, first_code, last_code, distances);
    } else {
      for (int64_t r = count; r < kRowsTogether; ++r) raw[r] = raw[0];
      approximate_distances<Simd, kRowsTogether, Simd::kTileRows / 2>(raw, codes, first_code,
                                                                      last_code, distances);
    }
    for (int64_t r = 0; r < count; ++r) {
      const T* of_row = distances + r * num_codes;
      const T smallest = smallest_of<Simd>(of_row, num_codes);
      if (!(double(smallest) < Precision<T>::largest)) return false;
      measure_within<Simd>(reach_of(smallest, codes.dim), of_row, codes, raw[r], first_code,
                           num_codes)
          .write(out, row + r);
    }
  }
  return true;
}

template <class Simd>
int64_t few_rows_scratch_bytes(int64_t dim, int64_t num_codes) {
  return kRowsTogether * (dim + num_codes) * int64_t(sizeof(typename Simd::T));
}

}  // namespace
}  // namespace vqvae_fast
