// A codebook in integers of 8 bits, and of 16 in a few directions, for the int8 filter.
#pragma once

#include <stdint.h>

#include "../../rows.h"
#include "../codes/listed_codes.h"

namespace vqvae_fast {

// Scores of longer codes would not fit 32 bits.
constexpr int64_t kInt8LargestDim = 4096;
// A vector that has a larger element than this, less the centre, is left to float32: squares of
// such are ordinary numbers in float32.
constexpr float kLargestElement = 0x1p60f;
// Dimensions of 16 bits, where there are any.
constexpr int64_t kWideDims = 8;

// Scores are integers of 32 bits. Those of usable codes stay above kNoScore, whatever the row;
// those of padding and of codes that are not finite begin at kUnusable and stay below it.
constexpr int32_t kNoScore = -1250 * 1000 * 1000;
constexpr int32_t kUnusable = -1610 * 1000 * 1000;
// In units of a score: of a code's half norm, and of a row's and a code's norms.
constexpr double kMaxHalfNorm = 1 << 29, kMaxProduct = 1 << 28;

// Vectors less the centre lie side by side in this many floats, zeros behind the last element.
VQVAE_FAST_INLINE int64_t padded_dim(int64_t dim) { return (dim + 15) / 16 * 16; }

// Reflections: vectors v of squared length 2, of x - v (v.x), [kWideDims][padded D], and behind
// them the products of the first two, of the next two, ...
VQVAE_FAST_INLINE int64_t reflections_size(int64_t dim) {
  return kWideDims * padded_dim(dim) + kWideDims / 2;
}
VQVAE_FAST_INLINE const float* overlaps_of(const float* reflections, int64_t dim) {
  return reflections + kWideDims * padded_dim(dim);
}

// How many words of 32 bits a quantized vector has: first the wide ones, each of two dimensions in
// 16 bits, then those of four dimensions in 8 bits.
struct Int8Words {
  int64_t wide, all;
};

// Upper bounds for a vector less the centre: the norms of the whole and of its wide and its narrow
// part, and how far unit * q is from either part.
struct Int8Sizes {
  double norm;
  double wide, narrow;
  double wide_error, narrow_error;

  VQVAE_FAST_INLINE void raise_to(const Int8Sizes& other) {
    raise(norm, other.norm);
    raise(wide, other.wide);
    raise(narrow, other.narrow);
    raise(wide_error, other.wide_error);
    raise(narrow_error, other.narrow_error);
  }

 private:
  static VQVAE_FAST_INLINE void raise(double& size, double to) { size = to > size ? to : size; }
};

// The largest magnitudes of the elements of some vectors, in either part.
struct Int8Extent {
  float wide, narrow;

  VQVAE_FAST_INLINE void raise_to(const Int8Extent& other) {
    wide = other.wide > wide ? other.wide : wide;
    narrow = other.narrow > narrow ? other.narrow : narrow;
  }
  // The unit that such elements need to fit their integers.
  VQVAE_FAST_INLINE double unit() const {
    const double of_wide = double(wide) / 32767, of_narrow = double(narrow) / 127;
    return of_wide > of_narrow ? of_wide : of_narrow;
  }
};

// e - centre, reflected so that its largest parts come first, is about unit * q with integers q:
// in [-32767, 32767] for the first num_wide dimensions, in [-127, 127] for the others.
template <class In>
struct Int8Book {
  ListedCodes<In> codes;
  int64_t group_codes;  // the kernel's
  int64_t num_groups;
  // [num_groups][group_words], as the kernel packs them.
  int32_t* groups;
  float* half_norm;     // [num_groups * group_codes]: -|e - centre|^2/2; -inf for padding, NaN, Inf
  const float* centre;  // [padded D]
  int64_t num_wide;
  const float* reflections;
  float unit;
  Int8Sizes largest;  // of the usable codes

  VQVAE_FAST_INLINE Int8Words words() const {
    const int64_t wide = num_wide / 2;
    return {wide, wide + (codes.dim - num_wide + 3) / 4};
  }
  VQVAE_FAST_INLINE int64_t group_words() const { return words().all * group_codes; }
};

// One input type's filter.
template <class In>
struct Int8Filter {
  int64_t tile_rows;    // rows that are scored together
  int64_t block_rows;   // rows that go through the codebook together
  int64_t group_codes;  // codes that are packed together
  // Bytes of scratch that `extent` and `pack` need, each call its own, and `find_wide`.
  int64_t (*pack_scratch_bytes)(int64_t dim);
  int64_t (*wide_scratch_bytes)(int64_t dim);
  // The directions that deserve 16 bits, as reflections: their number, 0 or kWideDims.
  int64_t (*find_wide)(const ListedCodes<In>& codes, const float* centre, void* scratch,
                       float* reflections);
  // The extent of groups [first, last) without the codes that are not finite.
  Int8Extent (*extent)(const Int8Book<In>& book, int64_t first, int64_t last, void* scratch);
  // Fills groups [first, last) of `book` and returns their share of `largest`. Everything else
  // must be set.
  Int8Sizes (*pack)(const Int8Book<In>& book, int64_t first, int64_t last, void* scratch);
  // Bytes of scratch that `search` needs.
  int64_t (*scratch_bytes)(const Int8Book<In>& book);
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
