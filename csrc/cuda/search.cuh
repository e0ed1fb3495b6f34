// Plans a search and launches its kernels.
#pragma once

#include <stdint.h>

#include <algorithm>

#include "../arena.h"
#include "../score_bound.h"
#include "book.cuh"
#include "exact_kernel.cuh"
#include "finish_kernel.cuh"
#include "launch.cuh"
#include "search.h"
#include "search_kernel.cuh"

namespace vqvae_fast {
namespace {

using SearchTile = Tile<8>;  // 64 rows, 128 threads

// SearchPlan says how one search is divided and where everything lies in its workspace.
struct SearchPlan {
  bool filtered;   // score in float32 first; otherwise measure every code in float64
  int64_t ranges;  // of codes, searched separately, so that few rows fill the device too
  unsigned exact_blocks;
  Book book;
  int64_t* list;
  Found* found;  // first by ranges, then by measured rows
  int64_t bytes;
};

template <class In, class Tile>
SearchPlan plan_search(const Rows<const In>& z, const Codes<In>& codes, int processors,
                       void* workspace) {
  SearchPlan plan{};
  Arena arena(workspace, kDeviceAlignment);
  plan.exact_blocks = static_cast<unsigned>(4 * processors);
  plan.filtered = sizeof(Compute<In>) == sizeof(float) && !too_long<float>(codes.dim);
  int64_t answers = std::max<int64_t>(z.count, ExactTile::kRows * plan.exact_blocks);
  if (plan.filtered) {
    const int64_t tiles = ceil_divide(codes.count, kTileCodes);
    // A thread counts the codes of a range in 32 bits.
    const int64_t at_least = ceil_divide(tiles, INT32_MAX / kTileCodes);
    const int64_t blocks = int64_t{Tile::kBlocksPerProcessor} * processors;
    plan.ranges = std::max(at_least, blocks / ceil_divide(z.count, Tile::kRows));
    plan.ranges = std::min({plan.ranges, tiles, int64_t{65535}});
    answers = std::max(answers, plan.ranges * z.count);
    plan.book.tiles = tiles;
    plan.book.centre = arena.take<float>(codes.dim);
    plan.book.codes = arena.take<float>(tiles * codes.dim * kTileCodes);
    plan.book.half_norm = arena.take<float>(tiles * kTileCodes);
    plan.book.facts = arena.take<BookFacts>(1);
    plan.list = arena.take<int64_t>(z.count);
  }
  plan.found = arena.take<Found>(answers);
  plan.bytes = arena.bytes();
  return plan;
}

template <class In, class Tile>
cudaError_t run_search(const Rows<const In>& z, const Codes<In>& codes, int64_t* indices,
                       Compute<In>* distances, const Rows<In>& quantized, void* workspace,
                       int processors, cudaStream_t stream) {
  const SearchPlan plan = plan_search<In, Tile>(z, codes, processors, workspace);
  Launcher launch(stream);
  RowList to_measure{nullptr, nullptr, z.count};
  // The kernels of the filter do not exist for float64.
  if constexpr (sizeof(Compute<In>) == sizeof(float)) {
    if (plan.filtered) {
      launch(prepare_book<In>, dim3(1), kPrepareThreads, codes, plan.book);
      launch(pack_book<In>, blocks_for(plan.book.tiles, 1), kTileCodes, codes, plan.book);
      const dim3 grid(static_cast<unsigned>(ceil_divide(z.count, Tile::kRows)),
                      static_cast<unsigned>(plan.ranges));
      launch(search<In, Tile>, grid, Tile::kThreads, z, codes, plan.book, plan.found);
      launch(collect<float>, blocks_for(z.count, 256), 256, plan.found, plan.ranges, z.count,
             plan.book.facts, plan.list, indices, distances);
      to_measure = {plan.list, &plan.book.facts->unsettled, z.count};
    }
  }
  launch(measure_all<In>, dim3(plan.exact_blocks), ExactTile::kThreads, z, codes, to_measure,
         plan.found);
  launch(finish<In>, blocks_for(z.count, kFinishRows), kFinishRows, z, codes, to_measure,
         plan.exact_blocks, plan.found, indices, distances, quantized);
  return launch.error();
}

}  // namespace
}  // namespace vqvae_fast
