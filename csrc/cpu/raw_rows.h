// Reads the rows of a block without centring them, to measure candidates.
#pragma once

#include <stdint.h>

#include "../elements.h"
#include "contract.h"

namespace vqvae_fast {
namespace {

constexpr int64_t kMaxRows = 128;  // in a block: more would push their best scores out of the cache

// Points raw[count] at rows [first, first + count): in place, or widened and contiguous in `copies`
// ([count][D]), which is written only then.
template <class In>
void read_rows(const Rows<const In>& z, int64_t first, int64_t count, Compute<In>* copies,
               const Compute<In>** raw) {
  const int64_t dim = z.dim;
  if constexpr (sizeof(In) == sizeof(Compute<In>)) {
    if (z.element_stride == 1) {
      for (int64_t r = 0; r < count; ++r) raw[r] = z.row(first + r);
      return;
    }
  }
  const In* rows[kMaxRows];
  for (int64_t r = 0; r < count; ++r) {
    rows[r] = z.row(first + r);
    raw[r] = copies + r * dim;
  }
  if (z.element_stride == 1) {
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t d = 0; d < dim; ++d) copies[r * dim + d] = widen(rows[r][d]);
    }
    return;
  }
  for (int64_t d = 0; d < dim; ++d) {  // neighbouring rows of feature maps are contiguous
    const int64_t offset = d * z.element_stride;
    for (int64_t r = 0; r < count; ++r) copies[r * dim + d] = widen(rows[r][offset]);
  }
}

}  // namespace
}  // namespace vqvae_fast
