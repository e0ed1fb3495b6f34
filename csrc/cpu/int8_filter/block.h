// An Int8Block holds the rows that pass through the int8 filter together. This file lays out its
// memory and quantizes its rows.
#pragma once

#include <math.h>
#include <stdint.h>

#include "../../arena.h"
#include "../../score_bound.h"
#include "../contract.h"
#include "../raw_rows.h"
#include "book.h"
#include "centred.h"
#include "quantize.h"

namespace vqvae_fast {
namespace {

constexpr int64_t kInt8PassGroups = 64;  // groups between two measurements

template <class Kernel>
constexpr int64_t kInt8BlockRows = 4 * Kernel::kTileRows;

// Returns the words that a row takes in a tile of quantized rows.
template <class Kernel>
VQVAE_FAST_INLINE int64_t words_in_tile(Int8Words words) {
  if constexpr (requires { Kernel::row_words(words); }) {
    return Kernel::row_words(words);
  } else {
    return words.all;
  }
}

// Returns what the thread must hold while it scores.
template <class Kernel>
auto begin_session(Int8Words words) {
  if constexpr (requires { typename Kernel::Session; }) {
    return typename Kernel::Session(words);
  } else {
    return words;  // nothing
  }
}

// find_tops() takes so many rows together.
constexpr int64_t kRowsAbreast = 4;

// An Int8Candidate names the codes of a group that share a lane, and the row of the block that they
// are measured against.
struct Int8Candidate {
  int32_t row;
  int32_t place;               // (group in the pass) * lanes + lane
  uint32_t chosen = kAllOfIt;  // a bit for each code of the lane: whether it is measured

  static constexpr uint32_t kAllOfIt = ~uint32_t{0};

  template <class Kernel>
  int64_t first_code(int64_t first_group) const {
    constexpr int64_t kLanes = Kernel::Simd::kWidth;
    return (first_group + place / kLanes) * Kernel::kGroupCodes + place % kLanes;
  }
};

// Returns how many candidates a row may have in a pass of that many groups. To measure more of them
// would cost more than a quarter of the row's search in float32.
inline int64_t most_listed(int64_t dim, int64_t groups) {
  return 6 + groups * dim / (2 * (dim + 24));
}

// An Int8Block is the memory of one thread, in one piece.
template <class Kernel>
struct Int8Block {
  using Simd = typename Kernel::Simd;
  using Mask = typename Simd::Mask;
  static constexpr int64_t kLanes = Simd::kWidth;
  // kVectors vectors of lanes hold the rows of a tile.
  static constexpr int64_t kVectors = (Kernel::kTileRows + kLanes - 1) / kLanes;
  static constexpr int64_t kLaneCodes = Kernel::kGroupCodes / kLanes;
  static_assert(kInt8BlockRows<Kernel> <= kMaxRows && Kernel::kGroupCodes % kLanes == 0);
  static_assert(kInt8BlockRows<Kernel> % kRowsAbreast == 0);

  int64_t rows;  // for which there is memory

  float* copies;       // [rows][D]: the rows, if they cannot be read in place
  const float** raw;   // [rows]: the rows, not centred
  float* centred;      // [vectors of a tile][padded D][lanes]: rows to be quantized
  int32_t* tiles;      // [tiles][kTileRows][words]: quantized rows, as the kernel lays them out
  float* ratio;        // [tiles]: units of a score in 1
  Int8Sizes* sizes;    // [rows]
  int32_t* bias;       // [rows]: added to a row's scores by the offset of the codes' integers
  bool* unsettled;     // [rows]: left to the float search
  int32_t* best;       // [groups of a pass][rows][lanes]: the best score of the codes of a lane
  int32_t* top;        // [rows]: the best of a pass
  int32_t* top_place;  // [rows]: its group in the pass and its lane, as group * lanes + lane
  int32_t* next;       // [rows]: the best score of that lane's codes that are not measured yet
  int32_t* bound;      // [rows]: the score below which a code cannot be the nearest
  Mask* reaching;      // [rows][groups of a pass]: the lanes that reach the bound
  Int8Candidate* listed;
  int32_t* by_group;  // [listed]: their numbers, those of one group together
  double* measured;   // [listed][codes of a lane]: their distances
  int64_t bytes;      // of all this

  // The memory suffices for a search of `wanted` rows, which may take several blocks.
  template <class In>
  Int8Block(const Int8Book<In>& book, int64_t wanted, void* scratch)
      : rows(smaller(kInt8BlockRows<Kernel>, rows_with_padding(wanted))) {
    const int64_t dim = book.codes.dim;
    const int64_t groups = smaller(book.num_groups, kInt8PassGroups);
    Arena arena(scratch, kAlignment);
    copies = arena.take<float>(rows * dim);
    raw = arena.take<const float*>(rows);
    centred = arena.take<float>(kVectors * padded_dim(dim) * kLanes);
    tiles = arena.take<int32_t>(rows * words_in_tile<Kernel>(book.words()));
    ratio = arena.take<float>(rows / Kernel::kTileRows + 1);
    sizes = arena.take<Int8Sizes>(rows);
    bias = arena.take<int32_t>(rows);
    unsettled = arena.take<bool>(rows);
    best = arena.take<int32_t>(groups * rows * kLanes);
    top = arena.take<int32_t>(rows);
    top_place = arena.take<int32_t>(rows);
    next = arena.take<int32_t>(rows);
    bound = arena.take<int32_t>(rows);
    reaching = arena.take<Mask>(rows * kInt8PassGroups);
    const int64_t most = rows * (most_listed(dim, groups) + 1);
    // The one extra place is written before it is known whether it counts.
    listed = arena.take<Int8Candidate>(most + 1);
    by_group = arena.take<int32_t>(most + 1);
    measured = arena.take<double>(most * kLaneCodes);
    bytes = arena.bytes();
  }

 private:
  static int64_t rows_with_padding(int64_t wanted) {
    const int64_t of_tiles = (wanted + Kernel::kTileRows - 1) / Kernel::kTileRows;
    const int64_t whole = of_tiles * Kernel::kTileRows;
    return (whole + kRowsAbreast - 1) / kRowsAbreast * kRowsAbreast;
  }
};

// Returns the unit that the integers of a tile need, for rows of at most that norm. Scores must fit
// in 32 bits, so rows much shorter or longer than the codes get a larger unit.
template <class Kernel, class In>
inline double unit_of(const Int8Book<In>& book, const Int8Extent& extent, double largest_norm) {
  const double most = book.largest.norm / double(book.unit);
  return larger(
      extent.unit(Kernel::kLargestRow),
      larger(0.5 * book.largest.norm * most / kMaxHalfNorm, largest_norm * most / kMaxProduct));
}

// Quantizes rows [begin, end) of the block, which form a tile. They share a unit, because they
// share the integers of half_norm.
template <class Kernel, class In>
inline void quantize_tile(const Int8Block<Kernel>& block, const Int8Book<In>& book, int64_t begin,
                          int64_t end) {
  using Block = Int8Block<Kernel>;
  using Simd = typename Kernel::Simd;
  using Ints = typename Simd::Ints;
  constexpr int64_t kWidth = Simd::kWidth;
  const int64_t dim = book.codes.dim, stride = padded_dim(dim) * kWidth;
  typename Simd::Mask settles[Block::kVectors];
  double norms[Block::kVectors * kWidth], largest_norm = 0;
  Int8Extent extent{0, 0};
  for (int64_t v = 0; v < Block::kVectors; ++v) {
    const float* vectors[kWidth];
    const int64_t first = begin + v * kWidth;
    for (int64_t l = 0; l < kWidth; ++l) vectors[l] = block.raw[smaller(first + l, end - 1)];
    float* x = block.centred + v * stride;
    const Centred<Simd> centred = subtract_centre<Simd>(vectors, 1, book.centre, dim, x);
    reflect<Simd>(book.reflections, book.num_wide, dim, x);
    settles[v] = centred.in_range & first_lanes<Simd>(end - first);
    extent.raise_to(extent_of<Simd>(x, book.num_wide, dim, settles[v]));
    centred.squares.store(norms + v * kWidth);
    for (int64_t l = 0; l < smaller(kWidth, end - first); ++l) {
      double& norm = norms[v * kWidth + l];
      norm = sqrt(norm);
      block.unsettled[first + l] = !(settles[v] >> l & 1);
      if (settles[v] >> l & 1) largest_norm = larger(largest_norm, norm);
    }
  }
  const double unit = unit_of<Kernel>(book, extent, largest_norm);
  const float per_unit = float(1 / unit), rounded = 1 / per_unit;
  block.ratio[begin / Kernel::kTileRows] = float(1 / (double(rounded) * book.unit));
  int32_t* tile = block.tiles + begin * words_in_tile<Kernel>(book.words());
  for (int64_t v = 0; v < Block::kVectors; ++v) {
    const int64_t first = v * kWidth;
    const auto quantized = quantize<Simd, 0>(
        block.centred + v * stride, book.num_wide, dim, rounded, per_unit, settles[v],
        [&](int64_t w, Ints word) { Kernel::pack_rows(tile, book.words(), w, first, word); });
    const Squares<Simd> squares(quantized.wide, quantized.narrow);
    int32_t sums[kWidth];
    Simd::store_ints(sums, quantized.narrow_sum);
    for (int64_t l = 0; l < smaller(kWidth, end - begin - first); ++l) {
      const int64_t r = begin + first + l;
      block.sizes[r] = squares.sizes(l, norms[first + l], book.num_wide, dim);
      block.bias[r] = block.unsettled[r] ? 0 : Kernel::kCodeOffset * sums[l];
    }
  }
}

template <class Kernel, class In>
VQVAE_FAST_ALONE void quantize_rows(const Int8Block<Kernel>& block, const Int8Book<In>& book,
                                    int64_t count) {
  for (int64_t begin = 0; begin < count; begin += Kernel::kTileRows) {
    quantize_tile(block, book, begin, smaller(begin + Kernel::kTileRows, count));
  }
}

}  // namespace
}  // namespace vqvae_fast
