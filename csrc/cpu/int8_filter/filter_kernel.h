// This file is the int8 filter of all instruction sets: a file of isa/ supplies an Int8Kernel,
// which packs operands and scores tiles, with its Simd, and instantiates it. Here and in the
// included files everything lies in unnamed namespaces and uses no standard library, because the
// linker must not share this code with code built for a lesser machine.
//
// An Int8Kernel has
//   Simd          lanes of float32 and int32 (isa/avx512vnni.cpp has one in full)
//   kTileRows     rows that meet a panel together
//   kGroupCodes   codes whose best scores are kept by lane, a multiple of the lanes
//   kCodeOffset   128 if the integers of codes are packed as unsigned (q + 128), else 0
//   pack_rows(tile, words, w, first, word)    places word w of rows [first, first + lanes)
//   pack_codes(group, words, w, first, word)  the same of codes of a group
//                 words says how many there are, and which of them are wide
//   score_group(tiles, num_rows, ratio, group, half_norm, words, best)
//                 scores a block of rows against a group: best[row][lane]; it may score all rows of
//                 the last tile
//   score_row(tile, r, ratio, group, half_norm, words, scores)
//                 the same scores of row r of a tile: scores[code of the group]
#pragma once

#include <stdint.h>

#include "../../elements.h"
#include "../contract.h"
#include "../raw_rows.h"
#include "block.h"
#include "book.h"
#include "bound.h"
#include "candidates.h"
#include "pack.h"
#include "top.h"
#include "wide_directions.h"

namespace vqvae_fast {
namespace {

template <class Kernel>
inline void raise_bounds(const Int8Block<Kernel>& block, const Int8Bound& bound, int64_t count,
                         Nearest out) {
  for (int64_t r = 0; r < count; ++r) {
    if (out.indices[r] != kNoCode) block.bound[r] = bound(block, r, out.distances[r]);
  }
}

template <class Kernel, class In>
void filter_block(const Int8Block<Kernel>& block, const Int8Book<In>& book, int64_t count,
                  bool codes_are_far, Nearest out) {
  const Int8Bound bound(book);
  quantize_rows(block, book, count);
  for (int64_t r = 0; r < count; ++r) {
    out.distances[r] = kInfinity;
    out.indices[r] = kNoCode;
    block.bound[r] = kNoScore;
  }
  for (int64_t first = 0; first < book.num_groups; first += kInt8PassGroups) {
    const int64_t groups = smaller(kInt8PassGroups, book.num_groups - first);
    for (int64_t g = 0; g < groups; ++g) {
      Kernel::score_group(block.tiles, count, block.ratio,
                          book.groups + (first + g) * book.group_words(),
                          book.half_norm + (first + g) * Kernel::kGroupCodes, book.words(),
                          block.best + g * block.rows * block.kLanes);
    }
    find_tops(block, count, groups);
    int64_t listed = list_tops(block, count);
    if (codes_are_far) choose_codes(block, book, first, listed, true);
    measure_listed(block, book.codes, first, listed);
    offer_listed(block, book.codes.count - 1, first, listed, out);
    raise_bounds(block, bound, count, out);
    listed = list_others(block, count, groups, book.codes.dim);
    if (codes_are_far) choose_codes(block, book, first, listed, false);
    measure_listed(block, book.codes, first, listed);
    offer_listed(block, book.codes.count - 1, first, listed, out);
    raise_bounds(block, bound, count, out);
  }
}

template <class Kernel, class In>
int64_t filter_search(const Int8Book<In>& book, const Rows<const In>& z, int64_t first_row,
                      int64_t last_row, bool codes_are_far, void* scratch, int64_t* indices,
                      double* distances, int64_t* unsettled) {
  const Int8Block<Kernel> block(book, last_row - first_row, scratch);
  int64_t num_unsettled = 0;
  for (int64_t row = first_row; row < last_row; row += block.rows) {
    const int64_t count = smaller(block.rows, last_row - row);
    const Nearest out{indices + (row - first_row), distances + (row - first_row)};
    read_rows(z, row, count, block.copies, block.raw);
    filter_block(block, book, count, codes_are_far, out);
    for (int64_t r = 0; r < count; ++r) {
      if (block.unsettled[r]) unsettled[num_unsettled++] = row + r;
    }
  }
  return num_unsettled;
}

template <class Kernel, class In>
int64_t filter_scratch_bytes(const Int8Book<In>& book, int64_t rows) {
  return Int8Block<Kernel>(book, rows, nullptr).bytes;
}

template <class Kernel, class In>
constexpr Int8Filter<In> make_filter() {
  using Simd = typename Kernel::Simd;
  return {Kernel::kTileRows,
          kInt8BlockRows<Kernel>,
          Kernel::kGroupCodes,
          centred_bytes<Simd>,
          WideScratch<Simd>::bytes,
          find_wide<Simd, In>,
          find_extent<Kernel, In>,
          pack_groups<Kernel, In>,
          filter_scratch_bytes<Kernel, In>,
          filter_search<Kernel, In>,
          filter_top_scratch_bytes<Kernel, In>,
          filter_search_top<Kernel, In>};
}

template <class Kernel>
constexpr Int8Filters make_filters() {
  return {make_filter<Kernel, float>(), make_filter<Kernel, BFloat16>(),
          make_filter<Kernel, Half>()};
}

}  // namespace
}  // namespace vqvae_fast
