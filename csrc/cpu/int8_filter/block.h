// A block of rows on its way through the int8 filter: reading, quantizing, and what bounds it.
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#include "../../score_bound.h"
#include "../contract.h"
#include "../exact.h"
#include "../isa/avx512_lanes.h"
#include "../raw_rows.h"
#include "book.h"
#include "quantize.h"

namespace vqvae_fast {
namespace {

constexpr int64_t kInt8BlockRows = 4 * kInt8TileRows;
constexpr int64_t kInt8PassGroups = 64;  // groups between two measurements
constexpr int64_t kInt8Lanes = 16;
constexpr int64_t kInt8LaneCodes = kInt8GroupCodes / kInt8Lanes;

// Scores are integers of 32 bits. Those of usable codes stay above kNoScore, whatever the row;
// those of padding and of codes that are not finite start at kUnusable and stay below it.
constexpr int32_t kNoScore = -1250 * 1000 * 1000;
constexpr int32_t kUnusable = -1610 * 1000 * 1000;
// In units of a score: of a code's half norm, and of a row's and a code's norms.
constexpr double kMaxHalfNorm = 1 << 29, kMaxProduct = 1 << 28;

enum class Int8Row : int32_t { kOpen, kGivenUp };

// The codes of a group that share a lane, to be measured against a row of the block.
struct Int8Candidate {
  int32_t row;
  int32_t place;  // group in the pass * 16 + lane

  int64_t first_code(int64_t first_group) const {
    return (first_group + place / kInt8Lanes) * kInt8GroupCodes + place % kInt8Lanes;
  }
};

// Candidates that a row may have in a pass of so many groups. To measure more would cost more than
// a quarter of what the row costs in float32.
inline int64_t most_listed(int64_t dim, int64_t groups) {
  return 6 + groups * dim / (2 * (dim + 24));
}

// The memory of one thread, in one piece.
struct Int8Block {
  float* copies;       // [rows][D]: the rows, where they cannot be read in place
  const float** raw;   // [rows]: the rows as they are
  float* centred;      // a tile abreast, on its way to integers
  int32_t* rows;       // [tiles][words][14]: quantized, as the codes are
  float* ratio;        // [tiles]: units of a score in 1
  Int8Sizes* sizes;    // [rows]
  int32_t* bias;       // [rows]: what adding 128 to the codes adds to a row's scores
  Int8Row* kind;       // [rows]
  int32_t* best;       // [groups of a pass][rows][lanes]: the best score of a lane's four codes
  int32_t* top;        // [rows]: the best of a pass
  int32_t* top_place;  // [rows]: its group in the pass and its lane, as group * 16 + lane
  int32_t* bound;      // [rows]: the score below which a code cannot be the nearest
  uint16_t* lanes;     // [rows][groups of a pass]: the lanes that reach it, as bits
  Int8Candidate* listed;
  double* measured;  // [listed][4]: their distances

  template <class In>
  Int8Block(const Int8Book<In>& book, void* scratch) {
    const int64_t dim = book.codes.dim;
    const int64_t groups = smaller(book.num_groups, kInt8PassGroups);
    at_ = begin_ = reinterpret_cast<uintptr_t>(scratch);
    copies = take<float>(kInt8BlockRows * dim);
    raw = take<const float*>(kInt8BlockRows);
    centred = take<float>(padded_dim(dim) * kAbreast);
    rows = take<int32_t>(kInt8BlockRows * book.words());
    ratio = take<float>(kInt8BlockRows / kInt8TileRows);
    sizes = take<Int8Sizes>(kInt8BlockRows);
    bias = take<int32_t>(kInt8BlockRows);
    kind = take<Int8Row>(kInt8BlockRows);
    best = take<int32_t>(groups * kInt8BlockRows * kInt8Lanes);
    top = take<int32_t>(kInt8BlockRows);
    top_place = take<int32_t>(kInt8BlockRows);
    bound = take<int32_t>(kInt8BlockRows);
    lanes = take<uint16_t>(kInt8BlockRows * kInt8PassGroups);
    const int64_t most = kInt8BlockRows * (most_listed(dim, groups) + 1);
    listed = take<Int8Candidate>(most + 1);  // the last is written before it is known to count
    measured = take<double>(most * kInt8LaneCodes);
  }

  int64_t bytes() const { return int64_t(at_ - begin_); }

 private:
  template <class Element>
  Element* take(int64_t count) {
    Element* taken = reinterpret_cast<Element*>(at_);
    at_ += uintptr_t((count * int64_t(sizeof(Element)) + 63) / 64 * 64);
    return taken;
  }
  uintptr_t at_;
  uintptr_t begin_;
};

// Quantizes rows [begin, end) of the block, a tile. They share a unit, because they share the
// codes' starting values.
template <class In>
inline void quantize_tile(const Int8Block& block, const Int8Book<In>& book, int64_t begin,
                          int64_t end) {
  static_assert(kInt8TileRows <= kAbreast, "a tile is quantized abreast");
  const int64_t dim = book.codes.dim;
  const float* vectors[kAbreast];
  for (int64_t i = 0; i < kAbreast; ++i) vectors[i] = block.raw[smaller(begin + i, end - 1)];
  const Centred centred = subtract_centre(vectors, 1, book.centre, dim, block.centred);
  reflect(book.reflections, book.num_wide, dim, block.centred);
  const __mmask16 open = centred.in_range & first_lanes(end - begin);
  double squares[kAbreast], norms[kAbreast], largest_norm = 0;
  _mm512_storeu_pd(squares, centred.low_squares);
  _mm512_storeu_pd(squares + 8, centred.high_squares);
  for (int64_t i = 0; i < end - begin; ++i) {
    const bool is_open = open >> i & 1;
    block.kind[begin + i] = is_open ? Int8Row::kOpen : Int8Row::kGivenUp;
    norms[i] = sqrt(squares[i]);
    if (is_open) largest_norm = larger(largest_norm, norms[i]);
  }
  double unit = extent_of(block.centred, book.num_wide, dim, open).unit();
  // Scores must not leave the integers: rows much shorter or longer than the codes get a larger
  // unit.
  const double most = book.largest.norm / double(book.unit);
  unit = larger(unit, larger(0.5 * book.largest.norm * most / kMaxHalfNorm,
                             largest_norm * most / kMaxProduct));
  const float per_unit = float(1 / unit), rounded = 1 / per_unit;
  block.ratio[begin / kInt8TileRows] = float(1 / (double(rounded) * book.unit));
  const Words words{block.rows + begin * book.words(), kInt8TileRows, first_lanes(kInt8TileRows),
                    open};
  const Quantized quantized =
      quantize(block.centred, book.num_wide, dim, rounded, per_unit, 0, words);
  const Squares all(quantized.wide, quantized.narrow);
  for (int64_t i = 0; i < end - begin; ++i) {
    block.sizes[begin + i] = sizes_of(all, i, norms[i], book.num_wide, dim);
  }
  const __m512i bias = _mm512_slli_epi32(quantized.narrow_sum, 7);  // times 128
  _mm512_mask_storeu_epi32(block.bias + begin, words.vectors, _mm512_maskz_mov_epi32(open, bias));
}

template <class In>
VQVAE_FAST_ALONE void quantize_rows(const Int8Block& block, const Int8Book<In>& book,
                                    int64_t count) {
  for (int64_t begin = 0; begin < count; begin += kInt8TileRows) {
    quantize_tile(block, book, begin, smaller(begin + kInt8TileRows, count));
  }
}

// Of the error that is allowed for: all of it, and what its own roundings may take.
#ifdef VQVAE_FAST_TEST_LOOSE_BOUND
constexpr double kErrorShare = 0.02;
#else
constexpr double kErrorShare = 1.000001;
#endif

// The score, in integers, below which no code can be as near to a row as `nearest`, a distance,
// squared. docs/exactness.md derives it.
class Int8Bound {
 public:
  template <class In>
  explicit Int8Bound(const Int8Book<In>& book)
      : largest_(book.largest),
        half_norm_error_(8 * 0x1p-24),
        distance_error_(double(book.codes.dim + 16) * 0x1p-52) {}

  int32_t operator()(const Int8Block& block, int64_t r, double nearest) const {
    const Int8Sizes& row = block.sizes[r];
    const double square = row.norm * row.norm, distance = sqrt(nearest);
    const double radius = smaller(largest_.norm, row.norm + distance);
    // A code that is near is near in either part.
    const double wide = smaller(largest_.wide, row.wide + distance);
    const double narrow = smaller(largest_.narrow, row.narrow + distance);
    const double score_error =
        row.wide_error * wide + (row.wide + row.wide_error) * largest_.wide_error +
        row.narrow_error * narrow + (row.narrow + row.narrow_error) * largest_.narrow_error +
        half_norm_error_ * radius * radius + distance_error_ * (square + nearest);
    const double bound = 0.5 * (square - nearest) - kErrorShare * score_error;
    const double ratio = double(block.ratio[r / kInt8TileRows]);
    // One for the rounding of a starting value, one for that of this.
    const double score = bound * ratio - 2 - fabs(bound * ratio) * 0x1p-22 + block.bias[r];
    return int32_t(smaller(larger(score, double(kNoScore)), 2147483647.0));
  }

 private:
  Int8Sizes largest_;
  double half_norm_error_, distance_error_;
};

}  // namespace
}  // namespace vqvae_fast
