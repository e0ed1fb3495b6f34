// A Block holds the rows that pass through the float search together. This file lays out its memory
// and centres its rows.
#pragma once

#include <math.h>
#include <stdint.h>

#include "../../arena.h"
#include "../../elements.h"
#include "../contract.h"
#include "../exact.h"
#include "../raw_rows.h"

namespace vqvae_fast {
namespace {

constexpr int64_t kPassPanels = 1024;  // panels between two measurements; this bounds the memory

// For long rows blocks are larger, because each panel is then loaded from farther away; they are
// capped so that a block fits in the L2.
template <class Simd>
constexpr int64_t block_rows(int64_t dim) {
  const int64_t bytes = dim * int64_t(sizeof(typename Simd::T));
  const int64_t rows = bytes < 512 ? kMaxRows / 2 : smaller(kMaxRows, (int64_t{1} << 18) / bytes);
  return rows < Simd::kTileRows ? Simd::kTileRows : rows / Simd::kTileRows * Simd::kTileRows;
}

// Only ordinary rows meet a tile. A row is unbounded if a score could overflow, or if rounding
// errors are too large for a useful bound: it is measured against every code.
enum class RowKind : int32_t { kOrdinary, kUnbounded, kInfinite, kNan };

// A Block is the memory of one thread, in one piece. It keeps the best and the second best score of
// each row and lane. One bit for each lane and panel records that the best rose there; to store a
// vector of panel numbers instead would take a tenth more time at D = 8.
template <class Simd>
struct Block {
  using T = typename Simd::T;
  using Mask = typename Simd::Mask;
  static constexpr int64_t kStateSize = 2 * Simd::kWidth;

  int64_t row_stride;
  T* copies;            // [rows][D]: the rows, if they cannot be read in place
  const T** raw;        // [rows]: the rows, not centred
  T* centred;           // [rows][row_stride]: centred and scaled
  T* state;             // [rows][2][kWidth]
  Mask* rose;           // [panels of a pass][rows]
  double* norm;         // [rows]: |z|, centred and scaled
  RowKind* kind;        // [rows]
  Mask* top_lane;       // [rows]: the lane with the best score, as a bit; 0 for rows to pass over
  uint16_t* top_panel;  // [rows]: the panel in the pass at which that lane rose last
  int64_t* top_code;    // [rows]: the first code of that panel and lane
  double* measured;     // [rows][kTileVecs]: their distances
  T* bound;             // [rows]: the score below which a code cannot be the nearest
  int64_t* unsettled;   // [num_unsettled]: rows that the first look at a pass cannot settle
  int64_t bytes;        // of all this
  int64_t rows;
  int64_t num_unsettled;
  int64_t spent;     // codes measured beyond the expected few; second looks count as some
  bool any_unusual;  // whether any row is not ordinary

  Block(int64_t dim, int64_t num_panels, void* scratch)
      : rows(block_rows<Simd>(dim)), num_unsettled(0), spent(0), any_unusual(false) {
    // A row is padded to a multiple of eight elements, because centre_row() writes eight at a time.
    // Long rows get one more cache line, because rows a power of two apart would share cache sets.
    row_stride = (dim + 7) / 8 * 8;
    if (dim >= 512) row_stride += kAlignment / int64_t(sizeof(T));
    Arena arena(scratch, kAlignment);
    copies = arena.take<T>(rows * dim);
    raw = arena.take<const T*>(rows);
    centred = arena.take<T>(rows * row_stride);
    state = arena.take<T>(rows * kStateSize);
    rose = arena.take<Mask>(smaller(num_panels, kPassPanels) * rows);
    norm = arena.take<double>(rows);
    kind = arena.take<RowKind>(rows);
    top_lane = arena.take<Mask>(rows);
    top_panel = arena.take<uint16_t>(rows);
    top_code = arena.take<int64_t>(rows);
    measured = arena.take<double>(rows * Simd::kTileVecs);
    unsettled = arena.take<int64_t>(rows);
    bound = arena.take<T>(rows);
    bytes = arena.bytes();
  }

  T* best(int64_t row) const { return state + row * kStateSize; }
  T* second(int64_t row) const { return best(row) + Simd::kWidth; }
};

template <class Simd>
int64_t scratch_bytes(int64_t dim, int64_t num_panels) {
  return Block<Simd>(dim, num_panels, nullptr).bytes;
}

template <class T>
RowKind unusual_kind(const T* row, int64_t dim) {
  RowKind kind = RowKind::kUnbounded;
  for (int64_t d = 0; d < dim; ++d) {
    if (row[d] != row[d]) return RowKind::kNan;
    if (row[d] - row[d] != 0) kind = RowKind::kInfinite;
  }
  return kind;
}

// Writes row `from` of the block, centred and scaled, to place `to`; returns its |z|^2.
template <class Simd, class In>
inline double centre_row(const Block<Simd>& block, const PackedBook<In>& book, int64_t from,
                         int64_t to) {
  using T = typename Simd::T;
  using Doubles = typename Simd::Doubles;
  const int64_t dim = book.codes.dim;
  const T* raw = block.raw[from];
  T* out = block.centred + to * block.row_stride;
  const auto scale = Doubles::broadcast(double(book.scale));
  typename Doubles::Vec square = Doubles::zero();
  for (int64_t d = 0; d < dim; d += 8) {
    // The arithmetic is float64, because the bound needs the norm of the row and not that of its
    // rounding.
    const auto z =
        Doubles::subtract(Doubles::multiply(load_lanes<Doubles>(raw + d, 1, dim - d), scale),
                          load_lanes<Doubles>(book.centre + d, 1, dim - d));
    square = Doubles::add_square(square, z);
    Doubles::store(out + d, z);  // rows are padded to whole vectors
  }
  return Doubles::sum(square);
}

template <class Simd>
void zero_row(const Block<Simd>& block, int64_t dim, int64_t to) {
  for (int64_t d = 0; d < dim; ++d) block.centred[to * block.row_stride + d] = 0;
}

// Centres all rows and finds the unusual ones, whose scores could overflow or are not finite.
template <class Simd, class In>
VQVAE_FAST_ALONE void classify(Block<Simd>& block, const PackedBook<In>& book, int64_t count) {
  using T = typename Simd::T;
  const int64_t dim = book.codes.dim;
  double* norm = block.norm;
  for (int64_t r = 0; r < count; ++r) norm[r] = centre_row(block, book, r, r);
  const bool long_rows = too_long<T>(dim);
  const double max_norm = book.max_norm;
  RowKind* kind = block.kind;
  int unusual = 0;
  for (int64_t r = 0; r < count; ++r) {
    norm[r] = sqrt(norm[r]);
    const double reach = norm[r] + max_norm;
    const bool ordinary = reach * (1 + reach) < Precision<T>::largest && !long_rows;
    kind[r] = ordinary ? RowKind::kOrdinary : RowKind::kUnbounded;
    unusual += !ordinary;
  }
  block.any_unusual = unusual != 0;
  if (!block.any_unusual) return;
  for (int64_t r = 0; r < count; ++r) {
    if (kind[r] == RowKind::kOrdinary) continue;
    kind[r] = unusual_kind(block.raw[r], dim);
    zero_row(block, dim, r);
  }
}

}  // namespace
}  // namespace vqvae_fast
