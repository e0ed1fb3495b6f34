// Finds the k nearest codes of each row with scores in float32 or float64.
#pragma once

#include <math.h>
#include <stdint.h>

#include "../../arena.h"
#include "../../score_bound.h"
#include "../contract.h"
#include "../top_codes/candidates.h"
#include "block.h"
#include "tile.h"

namespace vqvae_fast {
namespace {

// Bounds are raised after at least so many codes. Until the first time every code is a candidate.
constexpr int64_t kTopPassCodes = 1024;
template <class Simd>
constexpr int64_t kTopPassPanels = (kTopPassCodes - 1) / Simd::kTileCodes + 1;

// TopBlock is the memory of one thread, in one piece.
template <class Simd>
struct TopBlock {
  using T = typename Simd::T;

  int64_t k;
  int64_t most;              // candidates that a row may have between two passes
  Block<Simd> block;         // the rows
  TopCandidates<T>* listed;  // [rows]
  T* bound;                  // [rows]: the score below which a code cannot be among the k nearest
  Measured* kept;            // [rows][k]: the nearest measured codes
  int64_t* num_kept;         // [rows]
  double* spent;             // [rows]: codes measured before all were scored
  Measured* merged;          // [k + capacity]
  int64_t bytes;

  TopBlock(int64_t dim, int64_t top_k, void* scratch)
      : k(top_k), most(2 * top_k + 64), block(dim, 1, scratch) {
    const int64_t capacity = most + kTopPassPanels<Simd> * Simd::kTileCodes;
    Arena arena(scratch, kAlignment);
    arena.take<char>(block.bytes);
    T* scores = arena.take<T>(block.rows * capacity);
    int64_t* indices = arena.take<int64_t>(block.rows * capacity);
    listed = arena.take<TopCandidates<T>>(block.rows);
    bound = arena.take<T>(block.rows);
    kept = arena.take<Measured>(block.rows * k);
    num_kept = arena.take<int64_t>(block.rows);
    spent = arena.take<double>(block.rows);
    merged = arena.take<Measured>(k + capacity);
    bytes = arena.bytes();
    if (scratch == nullptr) return;
    for (int64_t r = 0; r < block.rows; ++r) {
      listed[r] = {scores + r * capacity, indices + r * capacity, 0};
    }
  }
};

template <class Simd>
int64_t top_scratch_bytes(int64_t dim, int64_t k) {
  return TopBlock<Simd>(dim, k, nullptr).bytes;
}

// Scores one panel and lists the codes that reach their row's bound.
template <class Simd, int kVecs>
VQVAE_FAST_ALONE void list_reaching(const TopBlock<Simd>& top, int64_t num_tiles,
                                    const typename Simd::T* panel,
                                    const typename Simd::T* half_norm, int64_t first_code,
                                    int64_t dim) {
  using T = typename Simd::T;
  using Vec = typename Simd::Vec;
  const int64_t row_stride = top.block.row_stride;
  const T* rows = top.block.centred;
  const T* bound = top.bound;
  for (int64_t tile = 0; tile < num_tiles; ++tile, bound += Simd::kTileRows) {
    Scores<Simd, kVecs> scores;
    score_tile<Simd, kVecs>(scores, rows + tile * Simd::kTileRows * row_stride, row_stride, panel,
                            half_norm, dim);
    uint32_t reaching = 0;
    VQVAE_FAST_UNROLL
    for (int i = 0; i < Simd::kTileRows; ++i) {
      Vec highest = scores.at[i][0];
      VQVAE_FAST_UNROLL
      for (int j = 1; j < kVecs; ++j) highest = Simd::max(highest, scores.at[i][j]);
      const bool any = Simd::at_least(highest, Simd::broadcast(bound[i])) != 0;
      reaching |= uint32_t{any} << i;
    }
    if (reaching == 0) continue;
    alignas(kAlignment) T stored[Simd::kTileRows][kVecs * Simd::kWidth];
    VQVAE_FAST_UNROLL
    for (int i = 0; i < Simd::kTileRows; ++i) {
      VQVAE_FAST_UNROLL
      for (int j = 0; j < kVecs; ++j) {
        Simd::store(stored[i] + j * Simd::kWidth, scores.at[i][j]);
      }
    }
    for (; reaching != 0; reaching &= reaching - 1) {
      const int i = lowest_bit(reaching);
      const Vec bounds = Simd::broadcast(bound[i]);
      TopCandidates<T>& listed = top.listed[tile * Simd::kTileRows + i];
      // One mask for all codes: how many of a vector reach the bound cannot be predicted.
      static_assert(kVecs * Simd::kWidth <= 64);
      uint64_t codes = 0;
      for (int64_t j = 0; j < kVecs * Simd::kWidth; j += Simd::kWidth) {
        codes |= uint64_t{Simd::at_least(Simd::load(stored[i] + j), bounds)} << j;
      }
      for (; codes != 0; codes &= codes - 1) {
        const int64_t code = lowest_bit(codes);
        listed.append(stored[i][code], first_code + code);
      }
    }
  }
}

template <class Simd>
inline void raise_bound(const TopBlock<Simd>& top, const ScoreBound<typename Simd::T>& score_bound,
                        int64_t r, double nearest) {
  const auto bound = score_bound(top.block.norm[r], nearest);
  if (bound > top.bound[r]) top.bound[r] = bound;
}

// Measures the candidates of row r and keeps the k nearest of all that were measured.
template <class Simd, class In>
void merge_candidates(const TopBlock<Simd>& top, const PackedBook<In>& book, int64_t r) {
  TopCandidates<typename Simd::T>& listed = top.listed[r];
  Measured* kept = top.kept + r * top.k;
  const int64_t before = top.num_kept[r];
  for (int64_t i = 0; i < before; ++i) top.merged[i] = kept[i];
  measure_list<typename Simd::Doubles>(book.codes, top.block.raw[r], listed.indices, listed.count,
                                       top.merged + before);
  const int64_t count = keep_nearest(top.merged, before + listed.count, top.k);
  for (int64_t i = 0; i < count; ++i) kept[i] = top.merged[i];
  top.num_kept[r] = count;
  listed.count = 0;
}

// Raises the bound of row r by the k-th best of its candidates' scores, and drops those below.
template <class Simd, class In>
void drop_candidates(const TopBlock<Simd>& top, const PackedBook<In>& book,
                     const ScoreBound<typename Simd::T>& score_bound, int64_t r) {
  TopCandidates<typename Simd::T>& listed = top.listed[r];
  if (listed.count < top.k) return;
  const auto score = listed.score_of_kth(top.k);
  double lowest_half_norm = 0;  // of the codes that reach this score
  for (int64_t i = 0; i < listed.count; ++i) {
    if (listed.scores[i] < score) continue;
    lowest_half_norm = smaller(lowest_half_norm, double(book.half_norm[listed.indices[i]]));
  }
  raise_bound(top, score_bound, r,
              score_bound.distance_within(top.block.norm[r], double(score), lowest_half_norm));
  listed.drop_below(top.bound[r]);
}

// Does so after a pass. If too many candidates are left, it measures them. The row becomes
// unsettled if it has spent more than `patience`: its codes may be copies of each other.
template <class Simd, class In>
void end_pass(const TopBlock<Simd>& top, const PackedBook<In>& book,
              const ScoreBound<typename Simd::T>& score_bound, int64_t r, double patience) {
  TopCandidates<typename Simd::T>& listed = top.listed[r];
  if (listed.count <= top.k + top.k / 4 + 16) return;
  drop_candidates(top, book, score_bound, r);
  if (listed.count <= top.most) return;
  top.spent[r] += double(listed.count);
  merge_candidates(top, book, r);
  if (top.num_kept[r] == top.k) {
    double farthest = 0;
    for (int64_t i = 0; i < top.k; ++i) {
      farthest = larger(farthest, top.kept[r * top.k + i].distance);
    }
    raise_bound(top, score_bound, r, farthest);
  }
  if (top.spent[r] > patience) top.bound[r] = typename Simd::T(kInfinity);
}

// Measures a row without a bound on its scores against every usable code.
template <class Simd, class In>
VQVAE_FAST_ALONE void measure_unbounded(const TopBlock<Simd>& top, const PackedBook<In>& book,
                                        int64_t r) {
  for (int64_t code = 0; code < book.codes.count; ++code) {
    if (!(book.half_norm[code] > -kInfinity)) continue;
    top.listed[r].append(0, code);
    if (top.listed[r].count == top.most) merge_candidates(top, book, r);
  }
  merge_candidates(top, book, r);
}

template <class Simd, class In>
void search_top_block(TopBlock<Simd>& top, const PackedBook<In>& book, int64_t count,
                      double patience, const TopCodes& out) {
  using T = typename Simd::T;
  Block<Simd>& block = top.block;
  const int64_t dim = book.codes.dim;
  const int64_t tiles = (count + Simd::kTileRows - 1) / Simd::kTileRows;
  classify<Simd, In>(block, book, count);
  for (int64_t r = count; r < tiles * Simd::kTileRows; ++r) zero_row(block, dim, r);
  for (int64_t r = 0; r < tiles * Simd::kTileRows; ++r) {
    const bool ordinary = r < count && block.kind[r] == RowKind::kOrdinary;
    top.bound[r] = ordinary ? -Precision<T>::largest : T(kInfinity);
    top.listed[r].count = 0;
    top.num_kept[r] = 0;
    top.spent[r] = 0;
  }
  const ScoreBound<T> score_bound(dim, double(book.scale), book.max_norm);
  for (int64_t first = 0; first < book.num_panels; first += kTopPassPanels<Simd>) {
    const int64_t last = smaller(first + kTopPassPanels<Simd>, book.num_panels);
    for (int64_t panel = first; panel < last; ++panel) {
      list_reaching<Simd, Simd::kTileVecs>(top, tiles, book.panels + panel * dim * Simd::kTileCodes,
                                           book.half_norm + panel * Simd::kTileCodes,
                                           panel * Simd::kTileCodes, dim);
    }
    for (int64_t r = 0; r < count; ++r) end_pass(top, book, score_bound, r, patience);
  }
  for (int64_t r = 0; r < count; ++r) {
    if (block.kind[r] == RowKind::kNan || block.kind[r] == RowKind::kInfinite) {
      out.counts[r] = block.kind[r] == RowKind::kNan ? kNanRow : kInfiniteRow;
      continue;
    }
    if (top.spent[r] > patience) {
      out.counts[r] = kUnsettledRow;
      continue;
    }
    if (block.kind[r] == RowKind::kUnbounded) {
      measure_unbounded(top, book, r);
    } else {
      drop_candidates(top, book, score_bound, r);
      merge_candidates(top, book, r);
    }
    out.counts[r] = top.num_kept[r];
    Measured* found = out.found + r * top.k;
    for (int64_t i = 0; i < top.num_kept[r]; ++i) found[i] = top.kept[r * top.k + i];
    sort_by_distance(found, top.num_kept[r]);
  }
}

template <class Simd, class In>
void search_top(const PackedBook<In>& book, const Rows<const In>& z, int64_t first_row,
                int64_t last_row, double patience, void* scratch, const TopCodes& out) {
  TopBlock<Simd> top(z.dim, out.k, scratch);
  for (int64_t row = first_row; row < last_row; row += top.block.rows) {
    const int64_t count = smaller(top.block.rows, last_row - row);
    read_rows(z, row, count, top.block.copies, top.block.raw);
    const int64_t done = row - first_row;
    search_top_block<Simd, In>(top, book, count, patience,
                               {out.k, out.found + done * out.k, out.counts + done});
  }
}

}  // namespace
}  // namespace vqvae_fast
