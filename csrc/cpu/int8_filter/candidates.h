// Finds the codes that may win from the best score of each lane, and measures them.
#pragma once

#include <stdint.h>

#include "../../elements.h"
#include "../best.h"
#include "../contract.h"
#include "../exact.h"
#include "../prefetch.h"
#include "block.h"
#include "book.h"

namespace vqvae_fast {
namespace {

// Finds each row's best score in a pass, and its place. It takes a few rows at a time, because in
// one row each step waits for the last. What it finds for rows behind the last is not used.
template <class Kernel>
VQVAE_FAST_ALONE void find_tops(const Int8Block<Kernel>& block, int64_t count, int64_t groups) {
  using Simd = typename Kernel::Simd;
  using Ints = typename Simd::Ints;
  constexpr int64_t kLanes = Simd::kWidth;
  constexpr int kTogether = kRowsAbreast;
  const int64_t stride = block.rows * kLanes;
  for (int64_t r = 0; r < count; r += kTogether) {
    const int32_t* best = block.best + r * kLanes;
    Ints top[kTogether], group[kTogether];
    VQVAE_FAST_UNROLL
    for (int i = 0; i < kTogether; ++i) {
      top[i] = Simd::load_ints(best + i * kLanes);
      group[i] = Simd::broadcast_int(0);
    }
    for (int64_t g = 1; g < groups; ++g) {
      best += stride;
      const Ints here = Simd::broadcast_int(int32_t(g));
      VQVAE_FAST_UNROLL
      for (int i = 0; i < kTogether; ++i) {
        const Ints score = Simd::load_ints(best + i * kLanes);
        const auto higher = Simd::greater(score, top[i]);
        top[i] = Simd::max(score, top[i]);
        group[i] = Simd::select(higher, here, group[i]);
      }
    }
    for (int i = 0; i < kTogether; ++i) {
      const int32_t highest = Simd::reduce_max(top[i]);
      const int lane = lowest_bit(Simd::at_least(top[i], Simd::broadcast_int(highest)));
      int32_t groups_of_lanes[kLanes];
      Simd::store_ints(groups_of_lanes, group[i]);
      block.top[r + i] = highest;
      block.top_place[r + i] = groups_of_lanes[lane] * int32_t(kLanes) + lane;
    }
  }
}

// Returns the j-th code of a lane of a group: they lie kLanes apart. In place of padding it returns
// the last code, which may be measured twice. A code that is not finite may be measured too: it is
// never nearer.
template <class Kernel>
inline int64_t code_of(int64_t first, int j, int64_t last_code) {
  return smaller(first + Int8Block<Kernel>::kLanes * j, last_code);
}

// The codes of a candidate lie apart in memory, so no hardware prefetcher finds them. The kernel
// prefetches those of so many candidates ahead.
constexpr int64_t kCandidatesAhead = 2;

// Writes the numbers of the listed candidates to block.by_group, those of one group together and
// otherwise in their order.
template <class Kernel>
VQVAE_FAST_ALONE void sort_by_group(const Int8Block<Kernel>& block, int64_t num_listed) {
  constexpr int64_t kLanes = Int8Block<Kernel>::kLanes;
  int32_t ends[kInt8PassGroups + 1] = {};
  for (int64_t i = 0; i < num_listed; ++i) ++ends[block.listed[i].place / kLanes + 1];
  for (int64_t g = 0; g < kInt8PassGroups; ++g) ends[g + 1] += ends[g];
  for (int64_t i = 0; i < num_listed; ++i) {
    block.by_group[ends[block.listed[i].place / kLanes]++] = int32_t(i);
  }
}

// Chooses, of the codes of each listed lane, those whose own score reaches the bound; of a row's
// top lane the best. A pass keeps only the best score of a lane, so the row and the group are
// scored again. That takes less time than to measure codes that come from memory. The function
// takes all candidates of one group before those of the next: it then reads the group from the L1
// for all rows but the first, and scores a row once for two of its lanes.
template <class Kernel, class In>
VQVAE_FAST_ALONE void choose_codes(const Int8Block<Kernel>& block, const Int8Book<In>& book,
                                   int64_t first_group, int64_t num_listed, bool are_tops) {
  constexpr int64_t kLanes = Int8Block<Kernel>::kLanes, kTile = Kernel::kTileRows;
  const Int8Words words = book.words();
  const int64_t tile_words = words_in_tile<Kernel>(words);
  const ListedCodes<In> codes = book.codes;
  int32_t scores[Kernel::kGroupCodes];
  int64_t scored_row = -1, scored_group = -1;
  sort_by_group(block, num_listed);
  for (int64_t i = 0; i < num_listed; ++i) {
    Int8Candidate& listed = block.listed[block.by_group[i]];
    const int64_t r = listed.row, group = first_group + listed.place / kLanes;
    if (r != scored_row || group != scored_group) {
      Kernel::score_row(block.tiles + r / kTile * kTile * tile_words, r % kTile,
                        block.ratio[r / kTile], book.groups + group * book.group_words(),
                        book.half_norm + group * Kernel::kGroupCodes, words, scores);
      scored_row = r;
      scored_group = group;
    }
    const int32_t bound = are_tops ? block.top[r] : block.bound[r];
    // Which code it is cannot be predicted, so no branch depends on it before the codes are read.
    int32_t next = kUnusable;
    uint32_t chosen = 0;
    VQVAE_FAST_UNROLL
    for (int j = 0; j < Int8Block<Kernel>::kLaneCodes; ++j) {
      const int32_t score = scores[listed.place % kLanes + j * kLanes];
      const bool reaches = score >= bound;
      chosen |= uint32_t(reaches) << j;
      const int32_t left = reaches ? kUnusable : score;
      next = left > next ? left : next;
    }
    listed.chosen = chosen;
    if (are_tops) block.next[r] = next;
    if (codes.element_stride != 1) continue;
    const int64_t first = listed.first_code<Kernel>(first_group);
    for (; chosen != 0; chosen &= chosen - 1) {
      const int64_t code = code_of<Kernel>(first, lowest_bit(chosen), codes.count - 1);
      prefetch_row(codes.row(code), codes.dim);
    }
  }
}

// Measures the listed candidates. All are measured before any is decided, so that their latencies
// overlap.
template <class Kernel, class In>
VQVAE_FAST_ALONE void measure_listed(const Int8Block<Kernel>& block, const ListedCodes<In>& codes,
                                     int64_t first_group, int64_t num_listed) {
  constexpr int64_t kLaneCodes = Int8Block<Kernel>::kLaneCodes;
  // A copy stays in registers, because the compiler cannot know that nothing writes to `codes`.
  const ListedCodes<In> local = codes;
  const auto code_of_listed = [&](int64_t i, int j) {
    const int64_t first = block.listed[i].template first_code<Kernel>(first_group);
    return local.row(code_of<Kernel>(first, j, local.count - 1));
  };
  const auto measure_chosen = [&](int64_t i) {
    for (int j = 0; j < kLaneCodes; ++j) {
      double& distance = block.measured[i * kLaneCodes + j];
      distance = kInfinity;
      if ((block.listed[i].chosen >> j & 1) == 0) continue;
      const In* const code[] = {code_of_listed(i, j)};
      measure<typename Kernel::Simd::Doubles>(block.raw[block.listed[i].row], code,
                                              local.element_stride, local.dim, &distance);
    }
  };
  for (int64_t i = 0; i < num_listed; ++i) {
    if (block.listed[i].chosen != Int8Candidate::kAllOfIt) {
      measure_chosen(i);
      continue;
    }
    if (i + kCandidatesAhead < num_listed && local.element_stride == 1) {
      for (int j = 0; j < kLaneCodes; ++j) {
        prefetch_row(code_of_listed(i + kCandidatesAhead, j), local.dim);
      }
    }
    const In* code[kLaneCodes];
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kLaneCodes; ++j) code[j] = code_of_listed(i, j);
    measure<typename Kernel::Simd::Doubles>(block.raw[block.listed[i].row], code,
                                            local.element_stride, local.dim,
                                            block.measured + i * kLaneCodes);
  }
}

// Offers the nearest of the measured codes to each row's best.
template <class Kernel>
VQVAE_FAST_ALONE void offer_listed(const Int8Block<Kernel>& block, int64_t last_code,
                                   int64_t first_group, int64_t num_listed, Nearest out) {
  constexpr int64_t kLaneCodes = Int8Block<Kernel>::kLaneCodes;
  const double* distances = block.measured;
  for (int64_t i = 0; i < num_listed; ++i, distances += kLaneCodes) {
    const Int8Candidate listed = block.listed[i];
    const int64_t first = listed.first_code<Kernel>(first_group);
    Best nearest{distances[0], 0};
    VQVAE_FAST_UNROLL
    for (int j = 1; j < kLaneCodes; ++j) nearest.offer_later(distances[j], j);
    Best best{out.distances[listed.row], out.indices[listed.row]};
    best.offer(nearest.distance(), code_of<Kernel>(first, int(nearest.index()), last_code));
    best.write(out, listed.row);
  }
}

// Lists the lane of each row's best score, if its codes may win.
template <class Kernel>
inline int64_t list_tops(const Int8Block<Kernel>& block, int64_t count) {
  int64_t listed = 0;
  for (int64_t r = 0; r < count; ++r) {
    block.listed[listed] = {int32_t(r), block.top_place[r]};
    block.next[r] = kUnusable;
    listed += !block.unsettled[r] && block.top[r] >= block.bound[r];
  }
  return listed;
}

// Finds the lanes of each group that reach the bound of row r.
template <class Kernel>
inline void find_reaching(const Int8Block<Kernel>& block, int64_t r, int64_t groups) {
  using Simd = typename Kernel::Simd;
  const auto bound = Simd::broadcast_int(block.bound[r]);
  const int32_t* score = block.best + r * Simd::kWidth;
  typename Simd::Mask* reaching = block.reaching + r * kInt8PassGroups;
  for (int64_t g = 0; g < groups; ++g) {
    reaching[g] = Simd::at_least(Simd::load_ints(score), bound);
    score += block.rows * Simd::kWidth;
  }
}

// Lists the other lanes that reach the bound. A row with too many of them becomes unsettled,
// because the float search is then quicker.
template <class Kernel>
VQVAE_FAST_ALONE int64_t list_others(const Int8Block<Kernel>& block, int64_t count, int64_t groups,
                                     int64_t dim) {
  using Simd = typename Kernel::Simd;
  static_assert(kInt8PassGroups == 64, "a bit of a word for each group");
  for (int64_t r = 0; r < count; ++r) {
    if (block.top[r] >= block.bound[r]) find_reaching(block, r, groups);
  }
  const int64_t most = most_listed(dim, groups);
  const uint64_t all = ~uint64_t{0} >> (kInt8PassGroups - groups);
  int64_t num_listed = 0;
  for (int64_t r = 0; r < count; ++r) {
    if (block.unsettled[r] || block.top[r] < block.bound[r]) continue;
    const typename Simd::Mask* reaching = block.reaching + r * kInt8PassGroups;
    uint64_t some = Simd::not_empty(reaching) & all;
    const int64_t before = num_listed;
    for (; some != 0 && num_listed - before <= most; some &= some - 1) {
      const int g = lowest_bit(some);
      for (uint32_t lanes = reaching[g]; lanes != 0 && num_listed - before <= most;
           lanes &= lanes - 1) {
        const int32_t place = int32_t(g * Simd::kWidth + lowest_bit(lanes));
        block.listed[num_listed] = {int32_t(r), place};
        // The codes of the top lane are measured already, or the best of them.
        num_listed += place != block.top_place[r] || block.next[r] >= block.bound[r];
      }
    }
    if (num_listed - before > most) {
      block.unsettled[r] = true;
      num_listed = before;
    }
  }
  return num_listed;
}

}  // namespace
}  // namespace vqvae_fast
