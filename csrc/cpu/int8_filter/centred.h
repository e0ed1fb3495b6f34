// Subtracts the centre from a few vectors and reflects them. It takes kWidth vectors at a time, as
// many as a Simd has lanes: element d of vector l lies at x[d * kWidth + l], so that nothing is
// summed across lanes.
#pragma once

#include <math.h>
#include <stdint.h>

#include "../../elements.h"
#include "../../score_bound.h"
#include "../contract.h"
#include "book.h"

namespace vqvae_fast {
namespace {

template <class Simd>
int64_t centred_bytes(int64_t dim) {
  return padded_dim(dim) * Simd::kWidth * int64_t{sizeof(float)};
}

template <class Simd>
inline typename Simd::Mask first_lanes(int64_t count) {
  constexpr uint32_t all = (1u << Simd::kWidth) - 1;
  if (count >= Simd::kWidth) return typename Simd::Mask(all);
  return count <= 0 ? typename Simd::Mask(0) : typename Simd::Mask((1u << count) - 1);
}

// Loads the first `count` elements from p on, which lie `stride` apart, and fills the rest with
// zeros.
template <class Simd, class In>
VQVAE_FAST_ALONE typename Simd::Vec load_strided(int64_t count, const In* p, int64_t stride) {
  float elements[Simd::kWidth] = {};
  for (int64_t i = 0; i < smaller(Simd::kWidth, count); ++i) elements[i] = widen(p[i * stride]);
  return Simd::load(elements);
}

// SquaredNorms holds the squared norms of kWidth vectors in float64.
template <class Simd>
struct SquaredNorms {
  using Doubles = typename Simd::Doubles;
  static_assert(Simd::kWidth % 8 == 0);
  static constexpr int kParts = Simd::kWidth / 8;
  typename Doubles::Vec part[kParts];

  void store(double* norms) const {
    for (int i = 0; i < kParts; ++i) Doubles::store(norms + 8 * i, part[i]);
  }
  typename Simd::Vec rounded() const {
    float norms[Simd::kWidth];
    for (int i = 0; i < kParts; ++i) Doubles::store(norms + 8 * i, part[i]);
    return Simd::load(norms);
  }
};

template <class Simd>
struct Centred {
  SquaredNorms<Simd> squares;    // of the differences before they were rounded
  typename Simd::Mask in_range;  // the vectors whose elements are at most kLargestElement
};

// Writes the vectors minus the centre ([padded D], zeros behind the last element) to x.
template <class Simd, class In>
inline Centred<Simd> subtract_centre(const In* const (&vectors)[Simd::kWidth],
                                     int64_t element_stride, const float* centre, int64_t dim,
                                     float* x) {
  using Vec = typename Simd::Vec;
  using Doubles = typename Simd::Doubles;
  constexpr int kWidth = Simd::kWidth, kParts = SquaredNorms<Simd>::kParts;
  const Vec largest = Simd::broadcast(kLargestElement);
  Centred<Simd> result;
  result.in_range = first_lanes<Simd>(kWidth);
  VQVAE_FAST_UNROLL
  for (int i = 0; i < kParts; ++i) result.squares.part[i] = Doubles::zero();
  for (int64_t d = 0; d < dim; d += kWidth) {
    Vec elements[kWidth];
    if (element_stride == 1) {
      const int64_t count = smaller(kWidth, dim - d);
      VQVAE_FAST_UNROLL
      for (int l = 0; l < kWidth; ++l) elements[l] = Simd::load_some(vectors[l] + d, count);
    } else {
      for (int l = 0; l < kWidth; ++l) {
        elements[l] = load_strided<Simd>(dim - d, vectors[l] + d * element_stride, element_stride);
      }
    }
    Simd::transpose(elements);
    VQVAE_FAST_UNROLL
    for (int i = 0; i < kWidth; ++i) {
      const Vec difference = Simd::subtract(elements[i], Simd::broadcast(centre[d + i]));
      result.in_range &= Simd::at_least(largest, Simd::abs(difference));
      Simd::store(x + (d + i) * kWidth, difference);
      const auto c = Doubles::broadcast(double(centre[d + i]));
      typename Doubles::Vec wide[kParts];
      Simd::to_doubles(elements[i], wide);
      VQVAE_FAST_UNROLL
      for (int part = 0; part < kParts; ++part) {
        const auto exact = Doubles::subtract(wide[part], c);
        result.squares.part[part] = Doubles::multiply_add(exact, exact, result.squares.part[part]);
      }
    }
  }
  return result;
}

// Returns the sum of eight vectors.
template <class Simd>
inline typename Simd::Vec sum_of(const typename Simd::Vec (&v)[8]) {
  const auto low = Simd::add(Simd::add(v[0], v[1]), Simd::add(v[2], v[3]));
  const auto high = Simd::add(Simd::add(v[4], v[5]), Simd::add(v[6], v[7]));
  return Simd::add(low, high);
}

// TwoProducts holds the products of each vector with two reflections.
template <class Simd>
struct TwoProducts {
  typename Simd::Vec first, second;
};

// Subtracts from x the reflections v[0] and v[1] times their products with x, and returns the
// products of the result with next[0] and next[1], in one pass over x. v, next: [2][padded D].
template <class Simd, bool kUpdate>
inline TwoProducts<Simd> reflect_two(const float* v, TwoProducts<Simd> products, const float* next,
                                     int64_t dim, float* x) {
  using Vec = typename Simd::Vec;
  constexpr int kChains = 8;  // in each, every step waits for the last
  const int64_t padded = padded_dim(dim);
  Vec first[kChains], second[kChains];
  VQVAE_FAST_UNROLL
  for (int i = 0; i < kChains; ++i) first[i] = second[i] = Simd::broadcast(0);
  for (int64_t d = 0; d < dim; d += kChains) {
    VQVAE_FAST_UNROLL
    for (int i = 0; i < kChains; ++i) {
      float* at = x + (d + i) * Simd::kWidth;
      Vec element = Simd::load(at);
      if (kUpdate) {
        element = Simd::subtract_product(Simd::broadcast(v[d + i]), products.first, element);
        element =
            Simd::subtract_product(Simd::broadcast(v[padded + d + i]), products.second, element);
        Simd::store(at, element);
      }
      first[i] = Simd::multiply_add(Simd::broadcast(next[d + i]), element, first[i]);
      second[i] = Simd::multiply_add(Simd::broadcast(next[padded + d + i]), element, second[i]);
    }
  }
  return {sum_of<Simd>(first), sum_of<Simd>(second)};
}

// Applies the reflections one after the other, two in a pass. The second applies to the result of
// the first, so its product with x is reduced by the first's share.
template <class Simd>
inline void reflect(const float* reflections, int64_t count, int64_t dim, float* x) {
  if (count == 0) return;
  const float* overlaps = overlaps_of(reflections, dim);
  const int64_t two = 2 * padded_dim(dim);
  TwoProducts<Simd> products =
      reflect_two<Simd, false>(nullptr, TwoProducts<Simd>(), reflections, dim, x);
  for (int64_t i = 0; i < count; i += 2, reflections += two) {
    products.second =
        Simd::subtract_product(Simd::broadcast(overlaps[i / 2]), products.first, products.second);
    // The products of the last pass are not used.
    const float* next = i + 2 < count ? reflections + two : reflections;
    products = reflect_two<Simd, true>(reflections, products, next, dim, x);
  }
}

// Bounds how far the computed reflections of x are from those of an orthogonal matrix, all together
// and relative to |x|. Each has D/8 + 6 roundings of v (v.x), which is at most 2 |x|, the roundings
// of v, which change its length, and one rounding of the difference.
inline double reflection_error(int64_t count, int64_t dim) {
  return double(count) * double(dim / 4 + 24) * 0x1p-24;
}

template <class Simd>
inline typename Simd::Vec largest_elements(const float* x, int64_t first, int64_t last) {
  auto largest = Simd::broadcast(0);
  for (int64_t d = first; d < last; ++d) {
    largest = Simd::max(largest, Simd::abs(Simd::load(x + d * Simd::kWidth)));
  }
  return largest;
}

// Returns the largest elements of the vectors in `lanes`.
template <class Simd>
inline Int8Extent extent_of(const float* x, int64_t num_wide, int64_t dim,
                            typename Simd::Mask lanes) {
  const auto most = [&](int64_t first, int64_t last) {
    return Simd::reduce_max(
        Simd::select(lanes, largest_elements<Simd>(x, first, last), Simd::broadcast(0)));
  };
  return {most(0, num_wide), most(num_wide, dim)};
}

}  // namespace
}  // namespace vqvae_fast
