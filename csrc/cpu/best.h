// Best keeps the nearest code of a row so far.
#pragma once

#include <stdint.h>

#include "../elements.h"
#include "../score_bound.h"
#include "contract.h"
#include "exact.h"

namespace vqvae_fast {
namespace {

// offer() has no branch, because which of a few candidates is nearest cannot be predicted. It
// compares the bits of distances as integers: distances are not negative, and the bits of such
// float64 numbers have their order.
class Best {
 public:
  Best(double distance, int64_t index) : bits_(to_bits(distance)), index_(index) {}

  void offer(double distance, int64_t index) {
    const uint64_t bits = to_bits(distance);
    take_if((bits < bits_) | ((bits == bits_) & (index < index_)), bits, index);
  }

  // Does the same as offer(), for an index that is larger than all before.
  void offer_later(double distance, int64_t index) {
    const uint64_t bits = to_bits(distance);
    take_if(bits < bits_, bits, index);
  }

  bool is_finite() const { return bits_ < to_bits(kInfinity); }  // nor NaN
  double distance() const { return from_bits(bits_); }
  int64_t index() const { return index_; }

  void write(const Nearest& out, int64_t row) const {
    out.distances[row] = distance();
    out.indices[row] = index_;
  }

 private:
  void take_if(bool nearer, uint64_t bits, int64_t index) {
    const uint64_t keep = uint64_t{nearer} - 1;  // all bits, or none
    bits_ = (bits & ~keep) | (bits_ & keep);
    index_ = int64_t((uint64_t(index) & ~keep) | (uint64_t(index_) & keep));
  }

  uint64_t bits_;
  int64_t index_;
};

// Measures code k and offers it to `best`. codes: Codes or ListedCodes.
template <class Simd, template <class> class List, class In>
inline void measure_code(const List<In>& codes, const Compute<In>* raw, int64_t k, Best& best) {
  const In* const code[] = {codes.row(k)};
  double distance;
  measure<typename Simd::Doubles>(raw, code, codes.element_stride, codes.dim, &distance);
  best.offer(distance, k);
}

}  // namespace
}  // namespace vqvae_fast
