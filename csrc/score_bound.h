// This file bounds the error of the fast scores, for all kernels. Everything is in an unnamed
// namespace, because the file is compiled for several instruction sets (and for the GPU), and the
// linker must not use a function of one in another.
#pragma once

#include <math.h>
#include <stdint.h>

#include "rows.h"

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

VQVAE_FAST_INLINE double smaller(double a, double b) { return a < b ? a : b; }
VQVAE_FAST_INLINE double larger(double a, double b) { return a > b ? a : b; }
VQVAE_FAST_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Returns the relative error of a score in T. At most dim + 3 roundings in T touch a product (both
// factors are centred, the product may be rounded, then there are dim additions) or half_norm. The
// float64 sum behind half_norm has dim / 8 + 4 more, which count if T is float64 too. The rest
// leaves room for second-order terms.
template <class T>
VQVAE_FAST_INLINE double score_gamma(int64_t dim) {
  return 1.02 * (double(dim + 8) * Precision<T>::unit + double(dim / 8 + 8) * 0x1p-53);
}

// Returns whether rows are so long that the bound on their scores is too loose to rule anything
// out.
template <class T>
VQVAE_FAST_INLINE bool too_long(int64_t dim) {
  return score_gamma<T>(dim) > 0.01;
}

// Computes the score below which no code can be as near as a given distance: the exact score of
// that distance minus the largest error of a computed score. Only codes with |e| <= |z| + distance
// can be that near, so one far-off code does not widen the bound. docs/exactness.md derives it.
template <class T>
class ScoreBound {
 public:
  VQVAE_FAST_INLINE ScoreBound(int64_t dim, double scale, double max_norm)
      : scale_(scale),
        max_norm_(max_norm),
        gamma_(score_gamma<T>(dim)),
        underflow_(Precision<T>::tiny * 4 * double(dim)),
        distance_error_(double(dim + 16) * 0x1p-52),
        distance_underflow_(Precision<double>::tiny * 2 * double(dim)) {}

  // norm: |z|, centred and scaled; nearest: a squared distance, not scaled.
  VQVAE_FAST_INLINE T operator()(double norm, double nearest) const {
    const double square = norm * norm;
    // The scale is applied twice, because its square may under- or overflow in float64.
    const double scaled = (nearest + distance_underflow_) * scale_ * scale_;
    const double radius = smaller(max_norm_, norm + sqrt(scaled));
    const double bound =
        0.5 * (square - scaled) - score_error(norm, radius) - distance_error_ * (square + scaled);
    // Rounding to T may raise the bound by half a unit in the last place. The bound stays finite:
    // below the score of every code but above that of padding.
    return T(larger(bound - 2 * Precision<T>::unit * fabs(bound), -Precision<T>::largest));
  }

  // Returns the largest squared distance, not scaled, at which a code with this computed score can
  // be measured. half_norm: that of the code, or a lower one.
  VQVAE_FAST_INLINE double distance_within(double norm, double score, double half_norm) const {
    const double square = norm * norm;
    // half_norm is rounded, and a small one may be flushed to zero.
    const double radius = smaller(max_norm_, sqrt(-2 * half_norm) * (1 + 4 * Precision<T>::unit) +
                                                 2 * sqrt(Precision<T>::tiny));
    const double scaled = larger(square - 2 * (score - score_error(norm, radius)), 0.0);
    const double measured = scaled + 2 * distance_error_ * (square + scaled);
    return measured / scale_ / scale_ + distance_underflow_;
  }

 private:
  VQVAE_FAST_INLINE double score_error(double norm, double radius) const {
    return gamma_ * (norm + 0.5 * radius) * radius + underflow_ * (1 + norm + radius);
  }

  double scale_, max_norm_, gamma_, underflow_, distance_error_, distance_underflow_;
};

}  // namespace
}  // namespace vqvae_fast
