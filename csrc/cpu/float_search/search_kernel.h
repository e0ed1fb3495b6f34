// This file is the float search of all instruction sets: each file of isa/ supplies a Simd type
// (vector, width, tile shape) and instantiates it. Here and in the included files everything lies
// in unnamed namespaces and uses no standard library, because the linker must not share this code
// with code built for a lesser machine.
#pragma once

#include <stdint.h>

#include <type_traits>

#include "../contract.h"
#include "../sums/residual_gradient.h"
#include "../sums/sum_rows.h"
#include "block.h"
#include "few_rows.h"
#include "measure_all.h"
#include "multiply.h"
#include "pack.h"
#include "resolve.h"
#include "tile.h"
#include "top.h"

namespace vqvae_fast {
namespace {

template <class Simd>
constexpr int64_t whole_tiles(int64_t rows) {
  return (rows + Simd::kTileRows - 1) / Simd::kTileRows;
}

// Searches for the ordinary rows of the block in panels [first, last), at most kPassPanels of them.
template <class Simd, class In>
void search_pass(Block<Simd>& block, const PackedBook<In>& book, int64_t count, int64_t first_panel,
                 int64_t last_panel, Nearest out) {
  using T = typename Simd::T;
  const int64_t dim = book.codes.dim;
  const int64_t tiles = whole_tiles<Simd>(count);
  const auto nothing = Simd::broadcast(-T(kInfinity));
  for (int64_t i = 0; i < tiles * Simd::kTileRows * Block<Simd>::kStateSize; i += Simd::kWidth) {
    Simd::store(block.state + i, nothing);
  }
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    const int64_t codes = smaller(book.codes.count - panel * Simd::kTileCodes, Simd::kTileCodes);
    const int64_t vecs = (codes + Simd::kWidth - 1) / Simd::kWidth;
    const auto look = vecs == 1   ? keep_best<Simd, 1>
                      : vecs == 2 ? keep_best<Simd, 2>
                                  : keep_best<Simd, Simd::kTileVecs>;
    look(block, tiles, book.panels + panel * dim * Simd::kTileCodes,
         book.half_norm + panel * Simd::kTileCodes, panel - first_panel, dim);
  }

  const ScoreBound<T> score_bound(dim, double(book.scale), book.max_norm);
  find_lanes<Simd>(block, score_bound, count, out);
  find_panels<Simd>(block, count, last_panel - first_panel);
  measure_tops<Simd, In>(block, book.codes, count, first_panel);
  offer_tops<Simd, In>(block, book, count, out);
  measure_others<Simd, In>(block, book, score_bound, count, first_panel, last_panel, out);
}

// Measuring a code costs as much as scoring it this many times.
constexpr int64_t kLooksPerMeasure = 16;

// Takes a second look at the rows that the first did not settle, which it moves to the front of
// `centred`. Returns false if it spends more than `budget`.
template <class Simd, class In>
bool settle(Block<Simd>& block, const PackedBook<In>& book, int64_t first_panel, int64_t last_panel,
            double budget, Nearest out) {
  block.spent +=
      block.num_unsettled * (last_panel - first_panel) * Simd::kTileCodes / kLooksPerMeasure;
  const int64_t tiles = whole_tiles<Simd>(block.num_unsettled);
  for (int64_t i = 0; i < tiles * Simd::kTileRows; ++i) {
    if (i < block.num_unsettled) {
      centre_row(block, book, block.unsettled[i], i);
    } else {
      zero_row(block, book.codes.dim, i);
    }
  }
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    for (int64_t tile = 0; tile < tiles; ++tile) {
      if (double(block.spent) > budget) return false;
      measure_candidates<Simd, In>(block, book, tile, panel, out);
    }
  }
  return true;
}

// Searches for the rows of a block. Returns false if it spends more than `budget`.
template <class Simd, class In>
bool search_block(Block<Simd>& block, const PackedBook<In>& book, int64_t count,
                  int64_t first_panel, int64_t last_panel, double budget, Nearest out) {
  classify<Simd, In>(block, book, count);
  for (int64_t r = count; r < whole_tiles<Simd>(count) * Simd::kTileRows; ++r) {
    zero_row(block, book.codes.dim, r);
  }
  for (int64_t r = 0; r < count; ++r) {
    out.distances[r] = kInfinity;
    out.indices[r] = kNoCode;
  }
  if (block.any_unusual)
    resolve_unusual<Simd, In>(block, book, count, first_panel, last_panel, out);
  for (int64_t panel = first_panel; panel < last_panel; panel += kPassPanels) {
    const int64_t end = smaller(panel + kPassPanels, last_panel);
    search_pass<Simd, In>(block, book, count, panel, end, out);
    if (block.num_unsettled == 0) continue;
    if (!settle<Simd, In>(block, book, panel, end, budget, out)) return false;
    if (end < last_panel) classify<Simd, In>(block, book, count);  // restores the rows' places
  }
  return double(block.spent) <= budget;
}

template <class Simd, class In>
int64_t search(const PackedBook<In>& book, const Rows<const In>& z, int64_t first_row,
               int64_t last_row, int64_t first_panel, int64_t last_panel, double patience,
               void* scratch, Nearest out) {
  Block<Simd> block(z.dim, last_panel - first_panel, scratch);
  for (int64_t row = first_row; row < last_row; row += block.rows) {
    const int64_t count = smaller(block.rows, last_row - row);
    read_rows(z, row, count, block.copies, block.raw);
    const Nearest of_block{out.indices + (row - first_row), out.distances + (row - first_row)};
    const double budget = patience * double(row + count - first_row);
    if (!search_block<Simd, In>(block, book, count, first_panel, last_panel, budget, of_block)) {
      return row;
    }
  }
  return last_row;
}

template <class Simd, class In>
constexpr auto gradient_of() {
  if constexpr (std::is_floating_point_v<In>) {
    return residual_gradient<Simd, In>;
  } else {
    return nullptr;
  }
}

template <class Simd, class In>
constexpr auto multiply_of() {
  if constexpr (std::is_floating_point_v<In>) {
    return multiply<Simd>;
  } else {
    return nullptr;
  }
}

template <class Simd, class In>
constexpr Engine<In> make_engine() {
  return {Simd::kTileCodes,
          Simd::kTileRows,
          largest_magnitude<In>,
          pack<Simd, In>,
          scratch_bytes<Simd>,
          search<Simd, In>,
          FewRows<Simd, In>::scratch_bytes,
          search_few_rows<Simd, In>,
          measure_all<Simd, In>,
          top_scratch_bytes<Simd>,
          search_top<Simd, In>,
          sum_rows<Simd, In>,
          multiply_scratch_bytes<Simd>,
          multiply_of<Simd, In>(),
          gradient_of<Simd, In>()};
}

template <class Simd32, class Simd64>
constexpr Engines make_engines() {
  return {make_engine<Simd32, float>(), make_engine<Simd64, double>(),
          make_engine<Simd32, BFloat16>(), make_engine<Simd32, Half>()};
}

}  // namespace
}  // namespace vqvae_fast
