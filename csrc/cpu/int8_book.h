// A codebook in 8-bit integers, for the filter of search_avx512vnni.cpp.
#pragma once

#include <stdint.h>

#include "../rows.h"

namespace vqvae_fast {

constexpr int64_t kInt8TileRows = 14;  // that meet a panel together
// Codes of a panel, and of the group whose best codes are kept by lane: two panels.
constexpr int64_t kInt8PanelCodes = 32;
constexpr int64_t kInt8GroupCodes = 2 * kInt8PanelCodes;

// e - centre is about unit * q, with q in [-127, 127] an integer; panels hold q + 128.
template <class In>
struct Int8Book {
  Codes<In> codes;
  int64_t num_groups;
  uint8_t* panels;      // [num_groups][2][words][32][4], where a word is four dimensions
  float* half_norm;     // [num_groups * 64]: |e - centre|^2/2; infinite for padding, NaN and Inf
  const float* centre;  // [D]
  float unit;
  double max_norm;   // upper bound of |e - centre| over the usable codes
  double max_error;  // the same of |e - centre - unit q|

  VQVAE_FAST_INLINE int64_t words() const { return (codes.dim + 3) / 4; }
  VQVAE_FAST_INLINE int64_t panel_bytes() const { return words() * 4 * kInt8PanelCodes; }
};

// What one range of groups contributes to the whole book.
struct Int8Range {
  double max_norm;
  double max_error;
};

// One input type's filter.
template <class In>
struct Int8Filter {
  // Of the elements of codes [first, last) less the centre; of usable codes.
  float (*largest_magnitude)(const Codes<In>& codes, const float* centre, int64_t first,
                             int64_t last);
  // Fills groups [first, last) of `book`. All but max_norm and max_error must be set.
  Int8Range (*pack)(const Int8Book<In>& book, int64_t first, int64_t last);
  // Bytes of scratch that `search` needs for rows of length `dim` and that many groups.
  int64_t (*scratch_bytes)(int64_t dim, int64_t num_groups);
  // Nearest code for rows [first_row, last_row); writes at [row - first_row]. The rows that the
  // filter cannot settle are listed in `unsettled`, whose length is returned.
  int64_t (*search)(const Int8Book<In>& book, const Rows<const In>& z, int64_t first_row,
                    int64_t last_row, void* scratch, int64_t* indices, double* distances,
                    int64_t* unsettled);
};

struct Int8Filters {
  Int8Filter<float> f32;
  Int8Filter<BFloat16> bf16;
  Int8Filter<Half> f16;

  const Int8Filter<float>* filter(const float*) const { return &f32; }
  const Int8Filter<double>* filter(const double*) const { return nullptr; }
  const Int8Filter<BFloat16>* filter(const BFloat16*) const { return &bf16; }
  const Int8Filter<Half>* filter(const Half*) const { return &f16; }
};

}  // namespace vqvae_fast
