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
  int32_t* rescored;               // [groups of a pass][rows]: the rows with a candidate in a group
  int64_t* best;                   // [most]: the candidates of a row with the best scores
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
    rescored = arena.take<int32_t>(kInt8PassGroups * block.rows);
    best = arena.take<int64_t>(most);
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

// Lists, for each group of a pass, the rows that have a lane there that reaches their bound.
// Returns the ends of the lists, which follow each other.
template <class Kernel>
VQVAE_FAST_ALONE void list_rows(const Int8TopBlock<Kernel>& top, int64_t count, int64_t groups,
                                int32_t (&ends)[kInt8PassGroups]) {
  using Simd = typename Kernel::Simd;
  const Int8Block<Kernel>& block = top.block;
  const uint64_t all = ~uint64_t{0} >> (kInt8PassGroups - groups);
  uint64_t groups_of[kMaxRows];
  int32_t begins[kInt8PassGroups + 1] = {};
  for (int64_t r = 0; r < count; ++r) {
    find_reaching(block, r, groups);
    groups_of[r] = Simd::not_empty(block.reaching + r * kInt8PassGroups) & all;
    if (block.unsettled[r]) groups_of[r] = 0;
    for (uint64_t some = groups_of[r]; some != 0; some &= some - 1) ++begins[lowest_bit(some) + 1];
  }
  for (int64_t g = 0; g < kInt8PassGroups; ++g) begins[g + 1] += begins[g];
  for (int64_t g = 0; g < kInt8PassGroups; ++g) ends[g] = begins[g];
  for (int64_t r = 0; r < count; ++r) {
    for (uint64_t some = groups_of[r]; some != 0; some &= some - 1) {
      top.rescored[ends[lowest_bit(some)]++] = int32_t(r);
    }
  }
}

// Lists the codes of a pass that reach the bound of their row. A pass keeps only the best score of
// a lane, so a row and a group with such a lane are scored again. All rows of one group are taken
// before those of the next: the group is then in the L1.
template <class Kernel, class In>
VQVAE_FAST_ALONE void list_reaching(const Int8TopBlock<Kernel>& top, const Int8Book<In>& book,
                                    int64_t count, int64_t first_group, int64_t groups) {
  using Simd = typename Kernel::Simd;
  constexpr int64_t kTile = Kernel::kTileRows;
  const Int8Block<Kernel>& block = top.block;
  const Int8Words words = book.words();
  const int64_t tile_words = kTile * words_in_tile<Kernel>(words);
  int32_t ends[kInt8PassGroups];
  list_rows(top, count, groups, ends);
  alignas(kAlignment) int32_t scores[Kernel::kGroupCodes];
  int32_t next = 0;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t group = first_group + g;
    for (; next < ends[g]; ++next) {
      const int64_t r = top.rescored[next];
      Kernel::score_row(block.tiles + r / kTile * tile_words, r % kTile, block.ratio[r / kTile],
                        book.groups + group * book.group_words(),
                        book.half_norm + group * Kernel::kGroupCodes, words, scores);
      const auto bounds = Simd::broadcast_int(block.bound[r]);
      // One mask for many codes: how many of a vector reach the bound cannot be predicted.
      for (int64_t first = 0; first < Kernel::kGroupCodes; first += 64) {
        uint64_t reaching = 0;
        for (int64_t j = first; j < smaller(first + 64, Kernel::kGroupCodes); j += Simd::kWidth) {
          const uint64_t lanes = Simd::at_least(Simd::load_ints(scores + j), bounds);
          reaching |= lanes << (j - first);
        }
        for (; reaching != 0; reaching &= reaching - 1) {
          const int64_t code = first + lowest_bit(reaching);
          top.listed[r].append(scores[code], group * Kernel::kGroupCodes + code);
        }
      }
    }
  }
}

// Raises the bound of row r by the distances of the codes with the k best scores, and drops the
// candidates below. From scores alone such a distance is known only up to their largest error.
template <class Kernel, class In>
VQVAE_FAST_ALONE void measure_best(const Int8TopBlock<Kernel>& top, const Int8Book<In>& book,
                                   const Int8Bound& bound, int64_t r) {
  TopCandidates<int32_t>& listed = top.listed[r];
  const int32_t score = listed.score_of_kth(top.k);
  int64_t count = 0;
  for (int64_t i = 0; i < listed.count && count < top.most; ++i) {
    top.best[count] = listed.indices[i];
    count += listed.scores[i] >= score;
  }
  measure_list<typename Kernel::Simd::Doubles>(book.codes, top.block.raw[r], top.best, count,
                                               top.measured);
  double farthest = 0;
  const int64_t nearest = keep_nearest(top.measured, count, top.k);
  for (int64_t i = 0; i < nearest; ++i) {
    farthest = larger(farthest, top.measured[i].distance);
  }
  const int32_t raised = bound(top.block, r, farthest);
  if (raised > top.block.bound[r]) top.block.bound[r] = raised;
  listed.drop_below(top.block.bound[r]);
}

// Raises the bound of row r by the k-th best of its candidates' scores, and drops those below. If
// more than `many` are left, it measures the best. The row becomes unsettled if that does not help.
template <class Kernel, class In>
void drop_candidates(const Int8TopBlock<Kernel>& top, const Int8Book<In>& book,
                     const Int8Bound& bound, int64_t r, int64_t many) {
  TopCandidates<int32_t>& listed = top.listed[r];
  if (listed.count < top.k) return;
  raise_bound(top, bound, r, listed.score_of_kth(top.k));
  listed.drop_below(top.block.bound[r]);
  if (listed.count > many) measure_best(top, book, bound, r);
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
    for (int64_t r = 0; r < count && first == 0; ++r) {
      if (!block.unsettled[r]) start_bound(top, bound, r, groups);
    }
    list_reaching(top, book, count, first, groups);
    for (int64_t r = 0; r < count; ++r) {
      const bool many = top.listed[r].count > top.k + top.k / 4 + 16;
      if (many && !block.unsettled[r]) drop_candidates(top, book, bound, r, top.most);
    }
  }
  for (int64_t r = 0; r < count; ++r) {
    const TopCandidates<int32_t>& listed = top.listed[r];
    if (!block.unsettled[r]) drop_candidates(top, book, bound, r, 2 * top.k);
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
