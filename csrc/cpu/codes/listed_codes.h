// ListedCodes holds the codes that a search chooses among: all of a codebook, or the listed ones.
#pragma once

#include <stdint.h>

#include "../../rows.h"

namespace vqvae_fast {

template <class In>
struct ListedCodes {
  const In* data;
  int64_t count;
  int64_t dim;
  int64_t row_stride;
  int64_t element_stride;
  const int64_t* listed;  // [count]: their places in the codebook, ascending; null for all

  VQVAE_FAST_INLINE int64_t place(int64_t k) const { return listed == nullptr ? k : listed[k]; }
  VQVAE_FAST_INLINE const In* row(int64_t k) const { return data + place(k) * row_stride; }

  // Returns codes [first, last) of these.
  ListedCodes part(int64_t first, int64_t last) const {
    if (listed != nullptr)
      return {data, last - first, dim, row_stride, element_stride, listed + first};
    return {row(first), last - first, dim, row_stride, element_stride, nullptr};
  }
};

template <class In>
VQVAE_FAST_INLINE ListedCodes<In> list_all(const Codes<In>& codes) {
  return {codes.data, codes.count, codes.dim, codes.row_stride, codes.element_stride, nullptr};
}

}  // namespace vqvae_fast
