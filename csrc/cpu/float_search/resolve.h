// Finds the exact answer from the kept scores.
#pragma once

#include <stdint.h>

#include "../../elements.h"
#include "../best.h"
#include "../contract.h"
#include "../exact.h"
#include "block.h"
#include "tile.h"

namespace vqvae_fast {
namespace {

// Returns the j-th code that shares a lane with code `first`: they lie kWidth apart. In place of
// padding it returns the last code, which may be measured twice.
template <class Simd>
inline int64_t lane_code(int64_t first, int j, int64_t last_code) {
  return smaller(first + j * Simd::kWidth, last_code);
}

// Measures the codes of a panel that share a lane with code `first`.
template <class Simd, class In>
inline void measure_lane(const ListedCodes<In>& codes, const typename Simd::T* raw, int64_t first,
                         double* distances) {
  const In* code[Simd::kTileVecs];
  VQVAE_FAST_UNROLL
  for (int j = 0; j < Simd::kTileVecs; ++j) {
    code[j] = codes.row(lane_code<Simd>(first, j, codes.count - 1));
  }
  measure<typename Simd::Doubles>(raw, code, codes.element_stride, codes.dim, distances);
}

// Offers the nearest of these codes to `best`. A code that is not finite is never nearer than
// infinity, so the unusable ones matter only if the nearest distance is infinite.
template <class Simd, class In>
inline void offer_lane(const PackedBook<In>& book, int64_t first, const double* distances,
                       Best& best) {
  const int64_t last_code = book.codes.count - 1;
  Best nearest{distances[0], 0};
  VQVAE_FAST_UNROLL
  for (int j = 1; j < Simd::kTileVecs; ++j) nearest.offer_later(distances[j], j);
  if (nearest.is_finite()) {
    best.offer(nearest.distance(), lane_code<Simd>(first, int(nearest.index()), last_code));
    return;
  }
  for (int j = 0; j < Simd::kTileVecs; ++j) {
    const int64_t k = lane_code<Simd>(first, j, last_code);
    if (book.half_norm[k] > -kInfinity) best.offer(distances[j], k);
  }
}

// All rows of a block take each of the next steps together, because the steps of one row are a
// chain of latencies, which the processor can only overlap with those of other rows.

// Finds the lane with each row's best score.
template <class Simd>
void find_lanes(const Block<Simd>& block, const ScoreBound<typename Simd::T>& score_bound,
                int64_t count, Nearest out) {
  using T = typename Simd::T;
  for (int64_t r = 0; r < count; ++r) {
    const auto scores = Simd::load(block.best(r));
    const T top = Simd::reduce_max(scores);
    const uint32_t lanes = Simd::at_least(scores, Simd::broadcast(top));
    const bool any_code = top > -T(kInfinity) && block.kind[r] == RowKind::kOrdinary;
    const bool can_win =
        out.indices[r] == kNoCode || top >= score_bound(block.norm[r], out.distances[r]);
    block.top_lane[r] = any_code && can_win ? typename Simd::Mask(lanes & (~lanes + 1)) : 0;
  }
}

// Finds the panel at which that lane rose last.
template <class Simd>
void find_panels(const Block<Simd>& block, int64_t count, int64_t num_panels) {
  const typename Simd::Mask* lane = block.top_lane;
  uint16_t* found = block.top_panel;
  for (int64_t panel = 0; panel < num_panels; ++panel) {
    const typename Simd::Mask* rose = block.rose + panel * block.rows;
    for (int64_t r = 0; r < count; ++r) {
      found[r] = (rose[r] & lane[r]) != 0 ? uint16_t(panel) : found[r];
    }
  }
}

// Measures the codes of that panel and lane. All rows are measured before any is decided: a loop
// that does both takes twice as long at D = 8.
template <class Simd, class In>
VQVAE_FAST_ALONE void measure_tops(const Block<Simd>& block, const ListedCodes<In>& codes,
                                   int64_t count, int64_t first_panel) {
  const ListedCodes<In> local = codes;  // a copy stays in registers: no write can alias it
  const typename Simd::T* const* raw = block.raw;
  const typename Simd::Mask* lane = block.top_lane;
  const uint16_t* panel = block.top_panel;
  int64_t* first = block.top_code;
  double* distances = block.measured;
  for (int64_t r = 0; r < count; ++r, distances += Simd::kTileVecs) {
    if (lane[r] == 0) continue;
    first[r] = (first_panel + panel[r]) * Simd::kTileCodes + lowest_bit(lane[r]);
    measure_lane<Simd, In>(local, raw[r], first[r], distances);
  }
}

template <class Simd, class In>
VQVAE_FAST_ALONE void offer_tops(const Block<Simd>& block, const PackedBook<In>& book,
                                 int64_t count, Nearest out) {
  const typename Simd::Mask* lane = block.top_lane;
  const int64_t* first = block.top_code;
  const double* distances = block.measured;
  for (int64_t r = 0; r < count; ++r, distances += Simd::kTileVecs) {
    if (lane[r] == 0) continue;
    Best best{out.distances[r], out.indices[r]};
    offer_lane<Simd, In>(book, first[r], distances, best);
    best.write(out, r);
  }
}

// Measures the other lanes whose best may still win. If a second best may win too, its code
// was not recorded, so the row becomes unsettled.
template <class Simd, class In>
void measure_others(Block<Simd>& block, const PackedBook<In>& book,
                    const ScoreBound<typename Simd::T>& score_bound, int64_t count,
                    int64_t first_panel, int64_t last_panel, Nearest out) {
  for (int64_t r = 0; r < count; ++r) {
    block.bound[r] = score_bound(block.norm[r], out.distances[r]);
  }
  block.num_unsettled = 0;
  for (int64_t r = 0; r < count; ++r) {
    if (block.top_lane[r] == 0) continue;
    const auto bounds = Simd::broadcast(block.bound[r]);
    uint32_t lanes = Simd::at_least(Simd::load(block.best(r)), bounds) & ~block.top_lane[r];
    for (; lanes != 0; lanes &= lanes - 1) {
      const int lane = lowest_bit(lanes);
      int64_t panel = last_panel - first_panel - 1;
      while (!(block.rose[panel * block.rows + r] >> lane & 1)) --panel;
      double distances[Simd::kTileVecs];
      const int64_t first = (first_panel + panel) * Simd::kTileCodes + lane;
      measure_lane<Simd, In>(book.codes, block.raw[r], first, distances);
      block.spent += Simd::kTileVecs;
      Best best{out.distances[r], out.indices[r]};
      offer_lane<Simd, In>(book, first, distances, best);
      best.write(out, r);
    }
    if (Simd::at_least(Simd::load(block.second(r)), bounds) != 0) {
      block.unsettled[block.num_unsettled++] = r;
    }
  }
}

// Takes a second look at one panel for a tile of unsettled rows: measures every code whose score
// reaches the bound.
template <class Simd, class In>
void measure_candidates(Block<Simd>& block, const PackedBook<In>& book, int64_t tile, int64_t panel,
                        Nearest out) {
  using T = typename Simd::T;
  const int64_t dim = book.codes.dim;
  const int64_t first = tile * Simd::kTileRows;
  const int64_t last = smaller(first + Simd::kTileRows, block.num_unsettled);
  alignas(kAlignment) T scores[Simd::kTileRows * Simd::kTileCodes];
  store_scores<Simd>(scores, block.centred + first * block.row_stride, block.row_stride,
                     book.panels + panel * dim * Simd::kTileCodes,
                     book.half_norm + panel * Simd::kTileCodes, dim);
  for (int64_t place = first; place < last; ++place) {
    const int64_t row = block.unsettled[place];
    const auto bounds = Simd::broadcast(block.bound[row]);
    Best best{out.distances[row], out.indices[row]};
    for (int j = 0; j < Simd::kTileVecs; ++j) {
      const T* score = scores + (place - first) * Simd::kTileCodes + j * Simd::kWidth;
      for (uint32_t lanes = Simd::at_least(Simd::load(score), bounds); lanes != 0;
           lanes &= lanes - 1) {
        const int64_t k = panel * Simd::kTileCodes + j * Simd::kWidth + lowest_bit(lanes);
        measure_code<Simd>(book.codes, block.raw[row], k, best);
        ++block.spent;
      }
    }
    best.write(out, row);
  }
}

template <class Simd, class In>
Best measure_every_code(const PackedBook<In>& book, const typename Simd::T* raw,
                        int64_t first_panel, int64_t last_panel) {
  Best best{kInfinity, kNoCode};
  const int64_t end = smaller(last_panel * Simd::kTileCodes, book.codes.count);
  for (int64_t k = first_panel * Simd::kTileCodes; k < end; ++k) {
    if (book.half_norm[k] > -kInfinity) measure_code<Simd>(book.codes, raw, k, best);
  }
  return best;
}

// Answers the rows that are not ordinary.
template <class Simd, class In>
VQVAE_FAST_ALONE void resolve_unusual(const Block<Simd>& block, const PackedBook<In>& book,
                                      int64_t count, int64_t first_panel, int64_t last_panel,
                                      Nearest out) {
  for (int64_t r = 0; r < count; ++r) {
    if (block.kind[r] == RowKind::kOrdinary) continue;
    Best best{kInfinity, book.first_usable};  // every code is infinitely far: a tie
    if (block.kind[r] == RowKind::kUnbounded) {
      best = measure_every_code<Simd, In>(book, block.raw[r], first_panel, last_panel);
    } else if (block.kind[r] == RowKind::kNan) {
      best = {kInfinity - kInfinity, 0};
    }
    best.write(out, r);
  }
}

}  // namespace
}  // namespace vqvae_fast
