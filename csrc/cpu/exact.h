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
  static constexpr double tiny = 0x1p-149;    // the smallest subnormal
  static constexpr double largest = 0x1p120;  // scores stay below this, well short of overflow
};
template <>
struct Precision<double> {
  static constexpr double unit = 0x1p-53;
  static constexpr double tiny = 0x1p-1074;
  static constexpr double largest = 0x1p1000;
};

inline double smaller(double a, double b) { return a < b ? a : b; }
inline double larger(double a, double b) { return a > b ? a : b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The sum of term(d)^2 over [0, dim) in float64, in one fixed order, so that every instruction set
// gets the same bits (these files are compiled without contraction of a*b+c).
template <class Term>
inline double sum_of_squares(int64_t dim, Term term) {
  constexpr int kLanes = 8;
  double lane[kLanes] = {};
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      const double t = term(d + l);
      lane[l] += t * t;
    }
  }
  for (int l = 0; d < dim; ++d, ++l) {
    const double t = term(d);
    lane[l] += t * t;
  }
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

// The distance that decides: sum((z - e)^2).
template <class In>
inline double distance(const Compute<In>* z, const In* code, int64_t element_stride, int64_t dim) {
  if (element_stride == 1) {
    return sum_of_squares(dim, [=](int64_t d) { return double(z[d]) - double(widen(code[d])); });
  }
  return sum_of_squares(
      dim, [=](int64_t d) { return double(z[d]) - double(widen(code[d * element_stride])); });
}

// Relative error of a score in T, centring and the half norm included: at most dim + 5 roundings
// touch any product, the rest is room for the second order.
template <class T>
inline double score_gamma(int64_t dim) {
  return 1.02 * double(dim + 8) * Precision<T>::unit;
}

// Scores of such long rows would be bounded too loosely to rule anything out.
template <class T>
inline bool too_long(int64_t dim) {
  return score_gamma<T>(dim) > 0.01;
}

// The score below which no code can be as near as `nearest`: the exact score of that distance,
// less the largest error of a computed score. `square` is |z|^2, centred and scaled. Only codes
// with |e| <= |z| + sqrt(nearest) can be that near, so one far-off code does not widen the bound.
// docs/exactness.md derives it.
template <class In>
inline Compute<In> score_bound(const PackedBook<In>& book, double square, double nearest) {
  using T = Compute<In>;
  const int64_t dim = book.codes.dim;
  const double scaled = nearest * double(book.scale) * double(book.scale);
  const double norm = sqrt(square);
  const double radius = smaller(book.max_norm, norm + sqrt(scaled));
  const double score_error = score_gamma<T>(dim) * (norm * radius + 0.5 * radius * radius) +
                             Precision<T>::tiny * (2 * double(dim) * (1 + norm + radius));
  const double distance_error = double(dim + 16) * 0x1p-52 * (square + scaled);
  const double bound = 0.5 * (square - scaled) - score_error - distance_error;
  // Rounding to T may raise it by half a unit in the last place.
  return T(bound - 2 * Precision<T>::unit * fabs(bound));
}

}  // namespace
}  // namespace vqvae_fast
