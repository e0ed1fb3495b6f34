// A block of rows on its way through the int8 filter: reading, quantizing, and what bounds it.
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#include "../score_bound.h"
#include "avx512_lanes.h"
#include "contract.h"
#include "exact.h"
#include "int8_book.h"
#include "int8_pack.h"
#include "raw_rows.h"

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
constexpr double kMaxHalfNorm = 1 << 30;  // in units of a score

// Elements beyond this, less the centre, are left to float32.
constexpr float kInt8Largest = 0x1p60f;

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
  int32_t* rows;       // [tiles][words][14]: quantized, four dimensions to a word
  float* ratio;        // [tiles]: units of a score in 1
  double* norm;        // [rows]: |z - centre|
  double* error;       // [rows]: |z - centre - unit q|, at most
  int32_t* bias;       // [rows]: what adding 128 to the codes adds to a row's scores
  Int8Row* kind;       // [rows]
  int32_t* best;       // [groups of a pass][rows][lanes]: the best score of a lane's four codes
  int32_t* top;        // [rows]: the best of a pass
  int32_t* top_place;  // [rows]: its group in the pass and its lane, as group * 16 + lane
  int32_t* bound;      // [rows]: the score below which a code cannot be the nearest
  uint16_t* lanes;     // [rows][groups of a pass]: the lanes that reach it, as bits
  Int8Candidate* listed;
  double* measured;  // [listed][4]: their distances

  Int8Block(int64_t dim, int64_t num_groups, void* scratch) {
    const int64_t groups = smaller(num_groups, kInt8PassGroups);
    at_ = begin_ = reinterpret_cast<uintptr_t>(scratch);
    copies = take<float>(kInt8BlockRows * dim);
    raw = take<const float*>(kInt8BlockRows);
    rows = take<int32_t>(kInt8BlockRows * ((dim + 3) / 4));
    ratio = take<float>(kInt8BlockRows / kInt8TileRows);
    norm = take<double>(kInt8BlockRows);
    error = take<double>(kInt8BlockRows);
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

// Sets the norm of row r, in float64: the bound takes a distance from its square. Returns the
// largest magnitude of the centred row, NaN or more than kInt8Largest where float32 must serve.
inline float measure_row(const Int8Block& block, const float* centre, int64_t dim, int64_t r) {
  const float* row = block.raw[r];
  __m512 largest = _mm512_setzero_ps();
  __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
  bool is_nan = false;
  for (int64_t d = 0; d < dim; d += 16) {
    const __mmask16 lanes = first_lanes(dim - d);
    const __m512 z = _mm512_maskz_loadu_ps(lanes, row + d);
    const __m512 c = _mm512_maskz_loadu_ps(lanes, centre + d);
    const __m512 rounded = _mm512_sub_ps(z, c);
    is_nan |= _mm512_cmp_ps_mask(rounded, rounded, _CMP_UNORD_Q) != 0;
    largest = _mm512_max_ps(largest, _mm512_abs_ps(rounded));
    const __m512d a = _mm512_sub_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(z)),
                                    _mm512_cvtps_pd(_mm512_castps512_ps256(c)));
    const __m512d b = _mm512_sub_pd(_mm512_cvtps_pd(_mm512_extractf32x8_ps(z, 1)),
                                    _mm512_cvtps_pd(_mm512_extractf32x8_ps(c, 1)));
    low = _mm512_fmadd_pd(a, a, low);
    high = _mm512_fmadd_pd(b, b, high);
  }
  block.norm[r] = sqrt(Avx512Lanes::sum(_mm512_add_pd(low, high)));
  return is_nan ? float(kInfinity) : _mm512_reduce_max_ps(largest);
}

// Quantizes row r of the block, where 1 / per_unit is about `unit`.
inline void quantize_row(const Int8Block& block, const float* centre, int64_t dim, int64_t r,
                         float unit, float per_unit) {
  const int64_t words = (dim + 3) / 4;
  int32_t* out = block.rows + r / kInt8TileRows * kInt8TileRows * words + r % kInt8TileRows;
  const __m512 units = _mm512_set1_ps(unit), per_units = _mm512_set1_ps(per_unit);
  __m512 rest_squares = _mm512_setzero_ps();
  __m512i sum = _mm512_setzero_si512();
  for (int64_t d = 0; d < dim; d += 16) {
    __m512 rest;
    const __m512i q = to_integers(
        less_centre(load_widened(first_lanes(dim - d), block.raw[r] + d), centre, dim, d),
        per_units, units, &rest);
    rest_squares = _mm512_fmadd_ps(rest, rest, rest_squares);
    sum = _mm512_add_epi32(sum, q);
    scatter_words(_mm512_cvtsepi32_epi8(q), out + d / 4 * kInt8TileRows, kInt8TileRows,
                  words - d / 4);
  }
  block.bias[r] = 128 * _mm512_reduce_add_epi32(sum);
  block.error[r] = sqrt(double(_mm512_reduce_add_ps(rest_squares))) * root_error(dim) +
                   0x1p-23 * block.norm[r] + kLostToUnderflow;
}

// Quantizes all rows. Those of a tile share a unit, because they share the codes' starting values.
template <class In>
VQVAE_FAST_ALONE void quantize_rows(const Int8Block& block, const Int8Book<In>& book,
                                    int64_t count) {
  const int64_t dim = book.codes.dim;
  // Half norms must not leave the integers: rows much shorter than the codes get a larger unit.
  const double most_ratio = kMaxHalfNorm / (0.5 * book.max_norm * book.max_norm);
  for (int64_t tile = 0; tile * kInt8TileRows < count; ++tile) {
    const int64_t begin = tile * kInt8TileRows, end = smaller(begin + kInt8TileRows, count);
    float largest = 0;
    for (int64_t r = begin; r < end; ++r) {
      const float magnitude = measure_row(block, book.centre, dim, r);
      const bool open = magnitude <= kInt8Largest;
      block.kind[r] = open ? Int8Row::kOpen : Int8Row::kGivenUp;
      if (open && magnitude > largest) largest = magnitude;
    }
    const float per_unit = float(smaller(127 / double(largest), most_ratio * book.unit));
    const float unit = 1 / per_unit;
    block.ratio[tile] = float(1 / (double(unit) * book.unit));
    for (int64_t r = begin; r < begin + kInt8TileRows; ++r) {
      if (r < end && block.kind[r] == Int8Row::kOpen) {
        quantize_row(block, book.centre, dim, r, unit, per_unit);
        continue;
      }
      const int64_t words = book.words();
      int32_t* out = block.rows + begin * words + (r - begin);
      for (int64_t w = 0; w < words; ++w) out[w * kInt8TileRows] = 0;
      block.bias[r] = 0;
    }
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
      : max_norm_(book.max_norm),
        max_error_(book.max_error),
        half_norm_error_(double(book.codes.dim / 16 + 32) * 0x1p-24),
        distance_error_(double(book.codes.dim + 16) * 0x1p-52) {}

  int32_t operator()(const Int8Block& block, int64_t r, double nearest) const {
    const double norm = block.norm[r], error = block.error[r];
    const double square = norm * norm;
    const double radius = smaller(max_norm_, norm + sqrt(nearest));
    const double score_error = error * radius + (norm + error) * max_error_ +
                               half_norm_error_ * radius * radius +
                               distance_error_ * (square + nearest);
    const double bound = 0.5 * (square - nearest) - kErrorShare * score_error;
    const double ratio = double(block.ratio[r / kInt8TileRows]);
    // One for the rounding of a starting value, one for that of this.
    const double score = bound * ratio - 2 - fabs(bound * ratio) * 0x1p-22 + block.bias[r];
    return int32_t(smaller(larger(score, double(kNoScore)), 2147483647.0));
  }

 private:
  double max_norm_, max_error_, half_norm_error_, distance_error_;
};

}  // namespace
}  // namespace vqvae_fast
