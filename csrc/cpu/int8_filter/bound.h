// Computes the bound below which the int8 filter may rule a code out.
#pragma once

#include <math.h>
#include <stdint.h>

#include "../../score_bound.h"
#include "block.h"
#include "book.h"

namespace vqvae_fast {
namespace {

// The bound allows for this multiple of the error: all of it, and the roundings of the bound
// itself.
#ifdef VQVAE_FAST_TEST_LOOSE_BOUND
constexpr double kErrorShare = 0.02;
#else
constexpr double kErrorShare = 1.000001;
#endif

// Int8Bound computes the integer score below which no code can be as near to a row as `nearest`, a
// squared distance. docs/exactness.md derives it.
class Int8Bound {
 public:
  template <class In>
  explicit Int8Bound(const Int8Book<In>& book)
      : largest_(book.largest),
        half_norm_error_(8 * 0x1p-24),
        distance_error_(double(book.codes.dim + 16) * 0x1p-52) {}

  template <class Kernel>
  int32_t operator()(const Int8Block<Kernel>& block, int64_t r, double nearest) const {
    const Int8Sizes& row = block.sizes[r];
    const double square = row.norm * row.norm, distance = sqrt(nearest);
    const double radius = smaller(largest_.norm, row.norm + distance);
    // A code that is near the row is near it in each part.
    const double wide = smaller(largest_.wide, row.wide + distance);
    const double narrow = smaller(largest_.narrow, row.narrow + distance);
    const double bound =
        0.5 * (square - nearest) - kErrorShare * (score_error(row, radius, wide, narrow) +
                                                  distance_error_ * (square + nearest));
    const double ratio = double(block.ratio[r / Kernel::kTileRows]);
    // The 2 covers the rounding of half_norm to an integer and the rounding of this bound.
    const double score = bound * ratio - 2 - fabs(bound * ratio) * 0x1p-22 + block.bias[r];
    return int32_t(smaller(larger(score, double(kNoScore)), 2147483647.0));
  }

  // Returns the largest squared distance at which a code with this integer score can be measured.
  template <class Kernel>
  double distance_within(const Int8Block<Kernel>& block, int64_t r, int32_t score) const {
    const Int8Sizes& row = block.sizes[r];
    const double square = row.norm * row.norm, reach = row.norm + largest_.norm;
    const double ratio = double(block.ratio[r / Kernel::kTileRows]);
    const double units = double(score) - block.bias[r];
    const double error = score_error(row, largest_.norm, largest_.wide, largest_.narrow) +
                         distance_error_ * (square + reach * reach);
    const double exact = (units - 2 - fabs(units) * 0x1p-22) / ratio - kErrorShare * error;
    return larger(square - 2 * exact, 0.0);
  }

 private:
  // radius, wide, narrow: upper bounds of the norm of the code and of its parts.
  double score_error(const Int8Sizes& row, double radius, double wide, double narrow) const {
    return row.wide_error * wide + (row.wide + row.wide_error) * largest_.wide_error +
           row.narrow_error * narrow + (row.narrow + row.narrow_error) * largest_.narrow_error +
           half_norm_error_ * radius * radius;
  }

  Int8Sizes largest_;
  double half_norm_error_, distance_error_;
};

}  // namespace
}  // namespace vqvae_fast
