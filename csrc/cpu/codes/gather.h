// Copies the chosen codes to the caller's output.
#pragma once

#include <stdint.h>

#include <algorithm>

#include "../../rows.h"

namespace vqvae_fast {

// Replaces what is no index of `count` codes by 0. Only the damaged bytes of a packed codebook
// leave a row without a code. Its answer is then as wrong as others, but nothing is read out of
// bounds.
inline void keep_in_bounds(int64_t* indices, int64_t first, int64_t last, int64_t count) {
  for (int64_t n = first; n < last; ++n) {
    if (uint64_t(indices[n]) >= uint64_t(count)) indices[n] = 0;
  }
}

// Copies the code of each row [first, last) to its row of `out`. codes: Codes or ListedCodes.
template <class In, class Book>
void gather(const Book& codes, const int64_t* indices, const Rows<In>& out, int64_t first,
            int64_t last) {
  if (out.data == nullptr) return;  // the caller wants none
  // A feature map is written element by element for many rows, because there neighbouring rows are
  // contiguous.
  constexpr int64_t kBlock = 64;
  for (int64_t begin = first; begin < last; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, last);
    const int64_t step = out.element_stride == 1 ? out.dim : 1;
    for (int64_t from = 0; from < out.dim; from += step) {
      for (int64_t n = begin; n < end; ++n) {
        const In* code = codes.row(indices[n]);
        In* row = out.row(n);
        for (int64_t d = from; d < from + step; ++d) {
          row[d * out.element_stride] = code[d * codes.element_stride];
        }
      }
    }
  }
}

}  // namespace vqvae_fast
