// An Int8Book is a codebook for the int8 filter: integers of 8 bits, and of 16 bits in a few
// directions.
#pragma once

#include <stdint.h>

#include "../../rows.h"
#include "../codes/listed_codes.h"
#include "../top_codes/measured.h"

namespace vqvae_fast {

// The scores of longer codes would not fit in 32 bits.
constexpr int64_t kInt8LargestDim = 4096;
// A vector with a larger element than this, after the centre is subtracted, is left to the float
// search. Squares of smaller elements are ordinary numbers in float32.
constexpr float kLargestElement = 0x1p60f;
// So many dimensions get 16 bits, if any do.
constexpr int64_t kWideDims = 8;

// Scores are integers of 32 bits. Those of usable codes stay above kNoScore, whatever the row;
// those of padding and of codes that are not finite begin at kUnusable and stay below it.
constexpr int32_t kNoScore = -1250 * 1000 * 1000;
constexpr int32_t kUnusable = -1610 * 1000 * 1000;
// These limit, in units of a score, |half_norm| of a code and the product of a row's and a code's
// norms.
constexpr double kMaxHalfNorm = 1 << 29, kMaxProduct = 1 << 28;

// These are the largest magnitudes of the integers in wide and in narrow dimensions. A wide integer
// is 256 h + l with bytes h and l. A kernel may set a smaller limit for the narrow integers of
// rows.
constexpr int kLargestWide = 32639, kLargestNarrow = 127;

// Returns the length of a centred vector in floats; zeros follow its last element.
VQVAE_FAST_INLINE int64_t padded_dim(int64_t dim) { return (dim + 15) / 16 * 16; }

// Returns the size of the reflections in floats. A reflection x - v (v.x) is stored as its vector
// v, whose squared length is 2: [kWideDims][padded D]. Then follow the dot products of the first
// and second vector, of the third and fourth, and so on.
VQVAE_FAST_INLINE int64_t reflections_size(int64_t dim) {
  return kWideDims * padded_dim(dim) + kWideDims / 2;
}
VQVAE_FAST_INLINE const float* overlaps_of(const float* reflections, int64_t dim) {
  return reflections + kWideDims * padded_dim(dim);
}

// Int8Words counts the words of 32 bits in a quantized vector: first the wide words, each with two
// dimensions in 16 bits, then the words with four dimensions in 8 bits.
struct Int8Words {
  int64_t wide, all;
};

// Int8Sizes holds upper bounds for a centred vector: the norms of the whole and of its wide and its
// narrow part, and the distance of unit * q from each part.
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

// Int8Extent holds the largest magnitude of the elements of some vectors, for each part.
struct Int8Extent {
  float wide, narrow;

  VQVAE_FAST_INLINE void raise_to(const Int8Extent& other) {
    wide = other.wide > wide ? other.wide : wide;
    narrow = other.narrow > narrow ? other.narrow : narrow;
  }
  // Returns the unit with which such elements fit their integers.
  VQVAE_FAST_INLINE double unit(int largest_narrow) const {
    const double of_wide = double(wide) / kLargestWide;
    const double of_narrow = double(narrow) / largest_narrow;
    return of_wide > of_narrow ? of_wide : of_narrow;
  }
};

// An Int8Book stores integers q with unit * q close to e - centre, which is reflected so that its
// largest parts come first. q has at most the magnitude kLargestWide in the first num_wide
// dimensions and 127 in the others.
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

  // Returns groups [first, last) of this book.
  Int8Book part(int64_t first, int64_t last) const {
    Int8Book some = *this;
    some.codes =
        codes.part(first * group_codes, last == num_groups ? codes.count : last * group_codes);
    some.num_groups = last - first;
    some.groups += first * group_words();
    some.half_norm += first * group_codes;
    return some;
  }
};

// An Int8Filter holds the filter's functions for one input type.
template <class In>
struct Int8Filter {
  int64_t tile_rows;    // rows that are scored together
  int64_t block_rows;   // rows that go through the codebook together
  int64_t group_codes;  // codes that are packed together
  // Below these sizes of a codebook a search in float32 is as fast.
  int64_t smallest_dim, fewest_elements;
  // Returns the bytes of scratch that `find_wide` and each call of `extent` and `pack` need.
  int64_t (*pack_scratch_bytes)(int64_t dim);
  int64_t (*wide_scratch_bytes)(int64_t dim);
  // Writes the reflections that turn the directions worth 16 bits into the first dimensions.
  // Returns their number, 0 or kWideDims.
  int64_t (*find_wide)(const ListedCodes<In>& codes, const float* centre, void* scratch,
                       float* reflections);
  // Returns the extent of groups [first, last) without the codes that are not finite.
  Int8Extent (*extent)(const Int8Book<In>& book, int64_t first, int64_t last, void* scratch);
  // Fills groups [first, last) of `book`, whose other members must be set, and returns their
  // contribution to `largest`.
  Int8Sizes (*pack)(const Int8Book<In>& book, int64_t first, int64_t last, void* scratch);
  // Returns the bytes of scratch that `search` needs for so many rows.
  int64_t (*scratch_bytes)(const Int8Book<In>& book, int64_t rows);
  // Finds the nearest code for rows [first_row, last_row); writes at [row - first_row]. Lists the
  // rows that the filter cannot settle in `unsettled` and returns its length. codes_are_far says
  // that the codes themselves are probably in no cache.
  int64_t (*search)(const Int8Book<In>& book, const Rows<const In>& z, int64_t first_row,
                    int64_t last_row, bool codes_are_far, void* scratch, int64_t* indices,
                    double* distances, int64_t* unsettled);
  // Finds the k nearest codes; marks the rows that the filter cannot settle.
  int64_t (*top_scratch_bytes)(const Int8Book<In>& book, int64_t rows, int64_t k);
  void (*search_top)(const Int8Book<In>& book, const Rows<const In>& z, int64_t first_row,
                     int64_t last_row, void* scratch, const TopCodes& out);
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
