// Finds the k nearest codes of each row with scores in integers.
#pragma once

#include <stdint.h>

#include "../../arena.h"
#include "../contract.h"
#include "../top_codes/candidates.h"
#include "block.h"
#include "book.h"
#include "bound.h"
#include "candidates.h"

namespace vqvae_fast {
namespace {

// Int8TopBlock is the memory of one thread, in one piece.
template <class Kernel>
struct Int8TopBlock {
  int64_t k;
  // A row with more candidates between two passes becomes unsettled: to measure so many would take
  // about as long as its search in float32.
  int64_t most;
  Int8Block<Kernel> block;
  TopCandidates<int32_t>* listed;  // [rows]
  Measured* measured;              // [most]
  int64_t bytes;

  template <class In>
  Int8TopBlock(const Int8Book<In>& book, int64_t wanted, int64_t top_k, void* scratch)
      : k(top_k),
        most(2 * top_k + 64 + smaller(book.codes.count / 64, 4096)),
        block(book, wanted, scratch) {
    const int64_t capacity = most + smaller(kInt8PassGroups, book.num_groups) * Kernel::kGroupCodes;
    Arena arena(scratch, kAlignment);
    arena.take<char>(block.bytes);
    int32_t* scores = arena.take<int32_t>(block.rows * capacity);
    int64_t* indices = arena.take<int64_t>(block.rows * capacity);
    listed = arena.take<TopCandidates<int32_t>>(block.rows);
    measured = arena.take<Measured>(most);
    bytes = arena.bytes();
    if (scratch == nullptr) return;
    for (int64_t r = 0; r < block.rows; ++r) {
      listed[r] = {scores + r * capacity, indices + r * capacity, 0};
    }
  }
};

template <class Kernel>
inline void raise_bound(const Int8TopBlock<Kernel>& top, const Int8Bound& bound, int64_t r,
                        int32_t score_of_kth) {
  const double distance = bound.distance_within(top.block, r, score_of_kth);
  const int32_t raised = bound(top.block, r, distance);
  if (raised > top.block.bound[r]) top.block.bound[r] = raised;
}

// Sets the first bound of row r, by the best scores of the lanes of the first pass.
template <class Kernel>
void start_bound(const Int8TopBlock<Kernel>& top, const Int8Bound& bound, int64_t r,
                 int64_t groups) {
  using Simd = typename Kernel::Simd;
  const Int8Block<Kernel>& block = top.block;
  const int64_t stride = block.rows * Simd::kWidth;
  const int32_t* best = block.best + r * Simd::kWidth;
  const auto count_reaching = [&](int32_t score) {
    const auto scores = Simd::broadcast_int(score);
    int64_t count = 0;
    for (int64_t g = 0; g < groups; ++g) {
      count += count_bits(Simd::at_least(Simd::load_ints(best + g * stride), scores));
    }
    return count;
  };
  auto highest = Simd::load_ints(best);
  for (int64_t g = 1; g < groups; ++g) {
    highest = Simd::max(highest, Simd::load_ints(best + g * stride));
  }
  if (count_reaching(kNoScore) < top.k) return;
  raise_bound(top, bound, r,
              score_of_kth(kNoScore, Simd::reduce_max(highest), top.k, count_reaching));
}

// Lists the codes of a pass that reach the bound of their row. A pass keeps only the best score of
// a lane, so a row and a group with such a lane are scored again.
template <class Kernel, class In>
VQVAE_FAST_ALONE void list_reaching(const Int8TopBlock<Kernel>& top, const Int8Book<In>& book,
                                    int64_t count, int64_t first_group, int64_t groups) {
  using Simd = typename Kernel::Simd;
  constexpr int64_t kTile = Kernel::kTileRows;
  const Int8Block<Kernel>& block = top.block;
  const Int8Words words = book.words();
  const int64_t tile_words = kTile * words_in_tile<Kernel>(words);
  alignas(kAlignment) int32_t scores[Kernel::kGroupCodes];
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t group = first_group + g;
    for (int64_t r = 0; r < count; ++r) {
      if (block.unsettled[r] || block.reaching[r * kInt8PassGroups + g] == 0) continue;
      Kernel::score_row(block.tiles + r / kTile * tile_words, r % kTile, block.ratio[r / kTile],
                        book.groups + group * book.group_words(),
                        book.half_norm + group * Kernel::kGroupCodes, words, scores);
      const auto bounds = Simd::broadcast_int(block.bound[r]);
      for (int64_t j = 0; j < Kernel::kGroupCodes; j += Simd::kWidth) {
        for (uint32_t lanes = Simd::at_least(Simd::load_ints(scores + j), bounds); lanes != 0;
             lanes &= lanes - 1) {
          const int64_t code = j + lowest_bit(lanes);
          top.listed[r].append(scores[code], group * Kernel::kGroupCodes + code);
        }
      }
    }
  }
}

// Raises the bound of row r by the k-th best of its candidates' scores, and drops those below.
template <class Kernel>
void drop_candidates(const Int8TopBlock<Kernel>& top, const Int8Bound& bound, int64_t r) {
  TopCandidates<int32_t>& listed = top.listed[r];
  if (listed.count < top.k) return;
  raise_bound(top, bound, r, listed.score_of_kth(top.k));
  listed.drop_below(top.block.bound[r]);
  if (listed.count > top.most) top.block.unsettled[r] = true;
}

template <class Kernel, class In>
void filter_top_block(const Int8TopBlock<Kernel>& top, const Int8Book<In>& book, int64_t count,
                      const TopCodes& out) {
  const Int8Block<Kernel>& block = top.block;
  const Int8Bound bound(book);
  quantize_rows(block, book, count);
  for (int64_t r = 0; r < count; ++r) {
    block.bound[r] = kNoScore;
    top.listed[r].count = 0;
  }
  for (int64_t first = 0; first < book.num_groups; first += kInt8PassGroups) {
    const int64_t groups = smaller(kInt8PassGroups, book.num_groups - first);
    for (int64_t g = 0; g < groups; ++g) {
      Kernel::score_group(block.tiles, count, block.ratio,
                          book.groups + (first + g) * book.group_words(),
                          book.half_norm + (first + g) * Kernel::kGroupCodes, book.words(),
                          block.best + g * block.rows * block.kLanes);
    }
    for (int64_t r = 0; r < count; ++r) {
      if (first == 0 && !block.unsettled[r]) start_bound(top, bound, r, groups);
      find_reaching(block, r, groups);
    }
    list_reaching(top, book, count, first, groups);
    for (int64_t r = 0; r < count; ++r) {
      const bool many = top.listed[r].count > top.k + top.k / 4 + 16;
      if (many && !block.unsettled[r]) drop_candidates(top, bound, r);
    }
  }
  for (int64_t r = 0; r < count; ++r) {
    const TopCandidates<int32_t>& listed = top.listed[r];
    if (!block.unsettled[r]) drop_candidates(top, bound, r);
    if (block.unsettled[r] || listed.count < smaller(top.k, book.codes.count)) {
      out.counts[r] = kUnsettledRow;
      continue;
    }
    measure_list<typename Kernel::Simd::Doubles>(book.codes, block.raw[r], listed.indices,
                                                 listed.count, top.measured);
    out.counts[r] = keep_nearest(top.measured, listed.count, top.k);
    Measured* found = out.found + r * top.k;
    for (int64_t i = 0; i < out.counts[r]; ++i) found[i] = top.measured[i];
    sort_by_distance(found, out.counts[r]);
  }
}

template <class Kernel, class In>
void filter_search_top(const Int8Book<In>& book, const Rows<const In>& z, int64_t first_row,
                       int64_t last_row, void* scratch, const TopCodes& out) {
  const Int8TopBlock<Kernel> top(book, last_row - first_row, out.k, scratch);
  [[maybe_unused]] const auto session = begin_session<Kernel>(book.words());
  for (int64_t row = first_row; row < last_row; row += top.block.rows) {
    const int64_t count = smaller(top.block.rows, last_row - row);
    read_rows(z, row, count, top.block.copies, top.block.raw);
    const int64_t done = row - first_row;
    filter_top_block(top, book, count, {out.k, out.found + done * out.k, out.counts + done});
  }
}

template <class Kernel, class In>
int64_t filter_top_scratch_bytes(const Int8Book<In>& book, int64_t rows, int64_t k) {
  return Int8TopBlock<Kernel>(book, rows, k, nullptr).bytes;
}

}  // namespace
}  // namespace vqvae_fast
