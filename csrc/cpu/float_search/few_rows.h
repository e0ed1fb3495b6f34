// Searches for a few rows, for which packing the codebook would cost more than reading it as it is.
#pragma once

#include <stdint.h>
#include <string.h>

#include "../../elements.h"
#include "../../score_bound.h"
#include "../best.h"
#include "../contract.h"
#include "../exact.h"
#include "../prefetch.h"
#include "../raw_rows.h"

namespace vqvae_fast {
namespace {

// So many rows share each load of a code.
template <class Simd>
constexpr int kRowsTogether = Simd::kWidth < 4 ? Simd::kWidth : 4;

// All rows meet the codes of a chunk while it is in the cache.
template <class Simd>
inline int64_t chunk_codes(int64_t dim) {
  constexpr int64_t kChunkBytes = 1 << 16;
  const int64_t codes = kChunkBytes / (dim * int64_t{sizeof(typename Simd::T)});
  return (codes / Simd::kWidth + 1) * Simd::kWidth;
}

// Loads at most `count` elements from p on and fills the rest with zeros.
template <class Simd, class In>
inline typename Simd::Vec load_some(const In* p, int64_t count) {
  using T = typename Simd::T;
  if constexpr (sizeof(In) == sizeof(T)) {
    if (count >= Simd::kWidth) return Simd::load(p);
  }
  if constexpr (requires { Simd::load_some(p, count); }) {
    return Simd::load_some(p, count);
  } else {
    T elements[Simd::kWidth] = {};
    for (int64_t l = 0; l < smaller(Simd::kWidth, count); ++l) elements[l] = widen(p[l]);
    return Simd::load(elements);
  }
}

// Returns the distances of kRows rows from kCodes codes: that of row i and code j lies in lane
// i * kCodes + j. Each is accurate to about D roundings, because a sum of squares has no
// cancellation.
template <class Simd, int kRows, int kCodes, class In>
inline typename Simd::Vec sum_squares(const typename Simd::T* const* rows,
                                      const In* const (&codes)[kCodes], int64_t dim) {
  using Vec = typename Simd::Vec;
  static_assert(kRows * kCodes == Simd::kWidth, "one vector holds the sums");
  Vec sums[kRows * kCodes];
  VQVAE_FAST_UNROLL
  for (int i = 0; i < kRows * kCodes; ++i) sums[i] = Simd::broadcast(0);
  for (int64_t d = 0; d < dim; d += Simd::kWidth) {
    Vec z[kRows];
    VQVAE_FAST_UNROLL
    for (int i = 0; i < kRows; ++i) z[i] = load_some<Simd>(rows[i] + d, dim - d);
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kCodes; ++j) {
      const Vec e = load_some<Simd>(codes[j] + d, dim - d);
      prefetch_ahead(codes[j] + d);
      VQVAE_FAST_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const Vec difference = Simd::subtract(z[i], e);
        Vec& sum = sums[i * kCodes + j];
        sum = Simd::multiply_add(difference, difference, sum);
      }
    }
  }
  return Simd::sums_of(sums);
}

// Writes the distances of kRows rows from codes [first_code, last_code) of a chunk to
// distances[row * stride + code of the chunk]. What lies behind the last code has no meaning.
template <class Simd, int kRows, class In>
VQVAE_FAST_ALONE void approximate_distances(const typename Simd::T* const* rows,
                                            const Codes<In>& codes, int64_t first_code,
                                            int64_t last_code, typename Simd::T* distances,
                                            int64_t stride) {
  using T = typename Simd::T;
  constexpr int kCodes = Simd::kWidth / kRows;
  const Codes<In> local = codes;  // a copy stays in registers: no write can alias it
  for (int64_t k = first_code; k < last_code; k += kCodes) {
    const In* code[kCodes];
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kCodes; ++j) code[j] = local.row(smaller(k + j, last_code - 1));
    const auto of_rows = sum_squares<Simd, kRows>(rows, code, local.dim);
    T lanes[Simd::kWidth];
    Simd::store(lanes, of_rows);
    VQVAE_FAST_UNROLL
    for (int i = 0; i < kRows; ++i) {
      memcpy(distances + i * stride + (k - first_code), lanes + i * kCodes, kCodes * sizeof(T));
    }
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

// Measures the codes of a chunk within reach. Copies of the nearest so far are skipped, because the
// lower index wins.
template <class Simd, class In>
inline void measure_within(typename Simd::T reach, const typename Simd::T* distances,
                           const Codes<In>& codes, const typename Simd::T* raw, int64_t first_code,
                           int64_t count, Best& best) {
  const In* nearest = best.index() == kNoCode ? nullptr : codes.row(best.index());
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
}

// A FewRows holds some rows of a search, and what is known of their nearest codes.
template <class Simd, class In>
class FewRows {
  using T = typename Simd::T;

 public:
  static int64_t scratch_bytes(int64_t dim) {
    return (kFewRows * dim + kTogether * chunk_codes<Simd>(dim)) * int64_t{sizeof(T)};
  }

  // Takes `count` rows from first_row on, at most kFewRows. out: of these rows.
  FewRows(const Codes<In>& codes, const Rows<const In>& z, int64_t first_row, int64_t count,
          void* scratch, Nearest out)
      : codes_(codes),
        num_rows_(count),
        distances_(static_cast<T*>(scratch) + kFewRows * z.dim),
        out_(out) {
    read_rows(z, first_row, num_rows_, static_cast<T*>(scratch), raw_);
    for (int64_t r = num_rows_; r < kFewRows; ++r) raw_[r] = raw_[0];
    for (int64_t r = 0; r < num_rows_; ++r) {
      smallest_[r] = T(kInfinity);
      Best(kInfinity, kNoCode).write(out_, r);
    }
  }

  void meet(int64_t first_code, int64_t last_code) {
    const int64_t stride = chunk_codes<Simd>(codes_.dim);
    for (int64_t row = 0; row < num_rows_; row += kTogether) {
      const int64_t count = smaller(kTogether, num_rows_ - row);
      const auto approximate = count == 1 ? approximate_distances<Simd, 1, In>
                                          : approximate_distances<Simd, kTogether, In>;
      approximate(raw_ + row, codes_, first_code, last_code, distances_, stride);
      for (int64_t r = 0; r < count; ++r) {
        choose(row + r, distances_ + r * stride, first_code, last_code - first_code);
      }
    }
  }

  // Returns whether every row has a code whose distance is far from overflow.
  bool are_settled() const {
    for (int64_t r = 0; r < num_rows_; ++r) {
      if (!(double(smallest_[r]) < Precision<T>::largest)) return false;
    }
    return true;
  }

 private:
  static constexpr int64_t kTogether = kRowsTogether<Simd>;
  static_assert(kFewRows % kTogether == 0);

  // Measures the codes of a chunk that may be nearest to a row. The reach shrinks from chunk to
  // chunk, so it never leaves out a code that is within the last.
  void choose(int64_t r, const T* distances, int64_t first_code, int64_t count) {
    const T smallest = smallest_of<Simd>(distances, count);
    smallest_[r] = smallest < smallest_[r] ? smallest : smallest_[r];
    const T reach = reach_of(smallest_[r], codes_.dim);
    if (!(smallest <= reach) || !(smallest < T(kInfinity))) return;
    Best best{out_.distances[r], out_.indices[r]};
    measure_within<Simd>(reach, distances, codes_, raw_[r], first_code, count, best);
    best.write(out_, r);
  }

  const Codes<In>& codes_;
  int64_t num_rows_;
  T* distances_;  // [kTogether][codes of a chunk]
  Nearest out_;
  const T* raw_[kFewRows];
  T smallest_[kFewRows];  // computed distances
};

// Finds the nearest code among [first_code, last_code) for all rows. Returns false, and `out` then
// has no meaning, if `search` must serve: a row or all codes are not finite, or squares could
// overflow.
template <class Simd, class In>
bool search_few_rows(const Codes<In>& codes, const Rows<const In>& z, int64_t first_code,
                     int64_t last_code, void* scratch, Nearest out) {
  const int64_t chunk = chunk_codes<Simd>(codes.dim);
  for (int64_t row = 0; row < z.count; row += kFewRows) {
    FewRows<Simd, In> rows(codes, z, row, smaller(kFewRows, z.count - row), scratch,
                           {out.indices + row, out.distances + row});
    for (int64_t k = first_code; k < last_code; k += chunk) {
      rows.meet(k, smaller(k + chunk, last_code));
    }
    if (!rows.are_settled()) return false;
  }
  return true;
}

}  // namespace
}  // namespace vqvae_fast
