// What is exact: distances in float64, and the bound on the error of the fast scores.
#pragma once

#include <math.h>
#include <stdint.h>

#include "contract.h"
#include "elements.h"

namespace vqvae_fast {
namespace {

constexpr double kInfinity = HUGE_VAL;

template <class T>
struct Precision;
template <>
struct Precision<float> {
  static constexpr double unit = 0x1p-24;     // half an ulp of 1
  static constexpr double tiny = 0x1p-126;    // what a result loses that is flushed to zero
  static constexpr double largest = 0x1p120;  // scores stay below this, well short of overflow
};
template <>
struct Precision<double> {
  static constexpr double unit = 0x1p-53;
  static constexpr double tiny = 0x1p-1022;
  static constexpr double largest = 0x1p1000;
};

inline double smaller(double a, double b) { return a < b ? a : b; }
inline double larger(double a, double b) { return a > b ? a : b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Eight neighbouring elements as float64 lanes, for which each instruction set has a type Doubles.
template <class Doubles, class In>
inline typename Doubles::Vec load_lanes(const In* p) {
  if constexpr (sizeof(In) == sizeof(Compute<In>)) {
    return Doubles::load(p);
  } else {
    Compute<In> lanes[8];
    for (int l = 0; l < 8; ++l) lanes[l] = widen(p[l]);
    return Doubles::load(lanes);
  }
}

// The same of elements that may lie apart or be fewer than eight: zeros stand in for those missing.
template <class Doubles, class In>
inline typename Doubles::Vec load_lanes(const In* p, int64_t stride, int64_t count) {
  if (stride == 1 && count >= 8) return load_lanes<Doubles>(p);
  Compute<In> lanes[8] = {};
  for (int l = 0; l < 8 && l < count; ++l) lanes[l] = widen(p[l * stride]);
  return Doubles::load(lanes);
}

// The distances that decide, of one row from a few codes: sum((z - e)^2) in float64, its lanes
// added in one fixed order, so that every instruction set gets the same bits (no file is compiled
// with contraction of a*b+c). load_row and load_code give the eight elements from d on.
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

// Relative error of a score in T: at most dim + 3 roundings in T touch a product (both factors are
// centred, the product may be rounded, then dim additions) or the half norm. The half norm's sum in
// float64 has dim / 8 + 4 more, which count where T is float64 too. The rest is room for the second
// order.
template <class T>
inline double score_gamma(int64_t dim) {
  return 1.02 * (double(dim + 8) * Precision<T>::unit + double(dim / 8 + 8) * 0x1p-53);
}

// Scores of such long rows would be bounded too loosely to rule anything out.
template <class T>
inline bool too_long(int64_t dim) {
  return score_gamma<T>(dim) > 0.01;
}

// The score below which no code can be as near as a given distance: the exact score of that
// distance, less the largest error of a computed score. Only codes with |e| <= |z| + distance can
// be that near, so one far-off code does not widen the bound. docs/exactness.md derives it.
template <class T>
class ScoreBound {
 public:
  ScoreBound(int64_t dim, double scale, double max_norm)
      : scale_(scale),
        max_norm_(max_norm),
        gamma_(score_gamma<T>(dim)),
        underflow_(Precision<T>::tiny * 4 * double(dim)),
        distance_error_(double(dim + 16) * 0x1p-52),
        distance_underflow_(Precision<double>::tiny * 2 * double(dim)) {}

  // norm: |z|, centred and scaled; nearest: a distance, squared and as it is.
  T operator()(double norm, double nearest) const {
    const double square = norm * norm;
    // Scaled twice, because the square of a float64 scale may itself under- or overflow.
    const double scaled = (nearest + distance_underflow_) * scale_ * scale_;
    const double radius = smaller(max_norm_, norm + sqrt(scaled));
    const double score_error =
        gamma_ * (norm + 0.5 * radius) * radius + underflow_ * (1 + norm + radius);
    const double bound =
        0.5 * (square - scaled) - score_error - distance_error_ * (square + scaled);
    // Rounding to T may raise it by half a unit in the last place. It stays finite, below every
    // code's score but above that of padding.
    return T(larger(bound - 2 * Precision<T>::unit * fabs(bound), -Precision<T>::largest));
  }

 private:
  double scale_, max_norm_, gamma_, underflow_, distance_error_, distance_underflow_;
};

}  // namespace
}  // namespace vqvae_fast
