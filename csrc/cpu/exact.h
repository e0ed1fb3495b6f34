// Measures distances in float64.
#pragma once

#include <stdint.h>

#include "../elements.h"
#include "../score_bound.h"
#include "contract.h"

namespace vqvae_fast {
namespace {

// Loads eight neighbouring elements as float64 lanes. Doubles is the type that an instruction set
// has for them.
template <class Doubles, class In>
inline typename Doubles::Vec load_lanes(const In* p) {
  if constexpr (requires { Doubles::load(p); }) {
    return Doubles::load(p);
  } else {
    Compute<In> lanes[8];
    for (int l = 0; l < 8; ++l) lanes[l] = widen(p[l]);
    return Doubles::load(lanes);
  }
}

// Loads up to eight elements that may lie apart; zeros stand in for missing ones.
template <class Doubles, class In>
inline typename Doubles::Vec load_lanes(const In* p, int64_t stride, int64_t count) {
  if (stride == 1 && count >= 8) return load_lanes<Doubles>(p);
  Compute<In> lanes[8] = {};
  for (int l = 0; l < 8 && l < count; ++l) lanes[l] = widen(p[l * stride]);
  return Doubles::load(lanes);
}

// Computes the deciding distances of one row from a few codes: sum((z - e)^2) in float64, its lanes
// added in one fixed order, so that every instruction set gets the same bits (no file is compiled
// with contraction of a*b+c). load_row and load_code load the eight elements from d on.
template <class Doubles, int kCodes, class LoadRow, class LoadCode>
inline void add_squares(int64_t dim, double* distances, LoadRow load_row, LoadCode load_code) {
  typename Doubles::Vec sums[kCodes];
  VQVAE_FAST_UNROLL
  for (int j = 0; j < kCodes; ++j) sums[j] = Doubles::zero();
  for (int64_t d = 0; d < dim; d += 8) {
    const auto row = load_row(d);
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kCodes; ++j) {
      sums[j] = Doubles::add_square(sums[j], Doubles::subtract(row, load_code(j, d)));
    }
  }
  VQVAE_FAST_UNROLL
  for (int j = 0; j < kCodes; ++j) distances[j] = Doubles::sum(sums[j]);
}

template <class Doubles, int kCodes, class In>
VQVAE_FAST_ALONE void measure_apart(const Compute<In>* z, const In* const (&codes)[kCodes],
                                    int64_t stride, int64_t dim, double* distances) {
  add_squares<Doubles, kCodes>(
      dim, distances, [&](int64_t d) { return load_lanes<Doubles>(z + d, 1, dim - d); },
      [&](int j, int64_t d) {
        return load_lanes<Doubles>(codes[j] + d * stride, stride, dim - d);
      });
}

template <class Doubles, int kCodes, class In>
inline void measure(const Compute<In>* z, const In* const (&codes)[kCodes], int64_t stride,
                    int64_t dim, double* distances) {
  if (stride != 1 || dim % 8 != 0) {
    return measure_apart<Doubles>(z, codes, stride, dim, distances);
  }
  add_squares<Doubles, kCodes>(
      dim, distances, [&](int64_t d) { return load_lanes<Doubles>(z + d); },
      [&](int j, int64_t d) { return load_lanes<Doubles>(codes[j] + d); });
}

}  // namespace
}  // namespace vqvae_fast
