// Searches a tile of rows with one block: float32 scores, then the bound, then float64 distances of
// the candidates.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include "../score_bound.h"
#include "distance.cuh"
#include "tile.cuh"

namespace vqvae_fast {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

// Settling is the state of the 16 rows of a warp while it settles them; each half-warp has 8.
struct Settling {
  double distance[16];  // of the code with the best score; infinite if the range has none
  double norm[16];      // |Z|
  float bound[16];      // no code with a lower score is the answer
  bool ordinary[16];    // the bound holds: all is finite, no score overflows, no far code matters
};

// Settles the rows of a warp: measures every code that the bound cannot rule out. If the second
// best score of a thread reaches the bound, its code was not recorded, so the row becomes
// unsettled. first_code: the one that best.code counts from.
template <class In, class Tile>
__device__ __forceinline__ void settle(const Rows<const In>& z, const Codes<In>& codes,
                                       const Book& book, int64_t first_row, int64_t first_code,
                                       const In* const* row_start, const Best<Tile>& best,
                                       Settling& settling, Found* found) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int half = lane / 16, leader = 16 * half;
  const bool second_eight = lane % 16 >= 8;
  const int row_thread = static_cast<int>(threadIdx.x) / Tile::kCodeThreads;
  const unsigned of_half = 0xffffu << leader;
  const double scale = book.facts->scale;

  // If nothing is better, `code` may be padding; then the answer is not used.
  const auto code_at = [&](int code) {
    const int64_t k = first_code + code;
    return codes.row(k < codes.count ? k : codes.count - 1);
  };
  const auto row_at = [&](int i) {
    return row_start[place_in_tile<Tile::kRowThreads>(row_thread, i)];
  };

  int winner[8];  // for each row the lane that has the best score
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float top = best.score_of(i);
#pragma unroll
    for (int across = 8; across > 0; across /= 2) {
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, across));
    }
    const unsigned have_it = __ballot_sync(kAllLanes, best.score_of(i) == top) & of_half;
    winner[i] = have_it != 0 ? __ffs(static_cast<int>(have_it)) - 1 : leader;
    const In* row = row_at(i);
    const In* code = code_at(__shfl_sync(kAllLanes, best.code_of(i), winner[i]));
    // Eight lanes measure the distance to the code, the other eight the row's own norm.
    const double factor = second_eight ? scale : 1.0;
    double sum = 0;
    for (int64_t d = lane % 8; d < z.dim; d += 8) {
      const double from =
          second_eight ? double(book.centre[d]) : double(widen(code[d * codes.element_stride]));
      const double element = __dmul_rn(double(widen(row[d * z.element_stride])), factor);
      sum = add_square(sum, __dadd_rn(element, -from));
    }
    sum = sum_of_lanes(sum);
    if (lane == leader) settling.distance[8 * half + i] = top > -HUGE_VALF ? sum : HUGE_VAL;
    if (lane == leader + 8) settling.norm[8 * half + i] = sqrt(sum);
  }
  __syncwarp();
  if (lane < 16) {
    const ScoreBound<float> score_bound(z.dim, scale, book.facts->max_norm);
    const double norm = settling.norm[lane], distance = settling.distance[lane];
    // The answer cannot be farther from the centre than |Z| plus the distance of the nearest code
    // so far. If that is small enough, codes beyond kFar are ruled out.
    const double reach = 1.001 * (norm + scale * sqrt(distance));
    settling.ordinary[lane] = norm <= kFarRow && (book.facts->any_far == 0 || reach < kFar);
    settling.bound[lane] = score_bound(norm, distance);
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int slot = 8 * half + i;
    const float bound = settling.bound[slot];
    const unsigned unknown = __ballot_sync(kAllLanes, best.second_of(i) >= bound) & of_half;
    const bool unsettled = !settling.ordinary[slot] || unknown != 0;
    const bool candidate = best.score_of(i) >= bound && lane != winner[i] && !unsettled;
    unsigned left = __ballot_sync(kAllLanes, candidate) & of_half;
    const double distance = settling.distance[slot];
    Found nearest{distance, first_code + __shfl_sync(kAllLanes, best.code_of(i), winner[i])};
    if (distance == HUGE_VAL) nearest = nothing_found();
    const In* row = row_at(i);
    while (__any_sync(kAllLanes, left != 0)) {
      // The half-warp measures two codes at a time, one with each eight lanes.
      const unsigned next = second_eight ? left & (left - 1) : left;
      const int from = next != 0 ? __ffs(static_cast<int>(next)) - 1 : leader;
      const int code = __shfl_sync(kAllLanes, best.code_of(i), from);
      const In* e = code_at(code);
      double sum = 0;
      for (int64_t d = lane % 8; d < z.dim; d += 8) {
        const double element = double(widen(row[d * z.element_stride]));
        sum = add_square(sum, __dadd_rn(element, -double(widen(e[d * codes.element_stride]))));
      }
      sum = sum_of_lanes(sum);
#pragma unroll
      for (int eight = 0; eight < 2; ++eight) {
        const int of = leader + 8 * eight;
        const Found other{__shfl_sync(kAllLanes, sum, of),
                          first_code + __shfl_sync(kAllLanes, code, of)};
        if (left != 0 && nearer(other, nearest)) nearest = other;
        left &= left - 1;
      }
    }
    const int64_t n = first_row + place_in_tile<Tile::kRowThreads>(row_thread, i);
    if (lane == leader && n < z.count) found[n] = unsettled ? Found{0, kUnsettled} : nearest;
  }
}

// Searches; the grid has a block for each tile of rows (x) and range of code tiles (y).
// found: [ranges][N].
template <class In, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocksPerProcessor)
    search(Rows<const In> z, Codes<In> codes, Book book, Found* found) {
  __shared__ __align__(16) Stage<Tile> stages[2];
  __shared__ Best<Tile> best;
  __shared__ const In* row_start[Tile::kRows];
  __shared__ Settling settling[Tile::kThreads / 32];
  const int t = static_cast<int>(threadIdx.x);
  const int64_t first_row = int64_t{blockIdx.x} * Tile::kRows;
  if (t < Tile::kRows) {  // rows past the end repeat the last row
    const int64_t n = first_row + t;
    row_start[t] = z.row(n < z.count ? n : z.count - 1);
  }
  __syncthreads();
  const int64_t ranges = gridDim.y, range = blockIdx.y;
  const int64_t each = book.tiles / ranges, rest = book.tiles % ranges;
  const int64_t first = each * range + (range < rest ? range : rest);
  search_tiles<In, Tile>(z, book, first, first + each + (range < rest), row_start, stages, best);
  settle<In, Tile>(z, codes, book, first_row, first * kTileCodes, row_start, best, settling[t / 32],
                   found + range * z.count);
}

// Merges the answers of the ranges. Puts unsettled rows on the list, and their place on it into
// their index. Only the order of the list depends on chance.
template <class T>
__global__ void __launch_bounds__(256)
    collect(const Found* found, int64_t ranges, int64_t count, BookFacts* facts, int64_t* list,
            int64_t* indices, T* distances) {
  const int64_t n = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (n >= count) return;
  Found nearest = found[n];
  bool unsettled = nearest.index == kUnsettled;
  for (int64_t range = 1; range < ranges; ++range) {
    const Found other = found[range * count + n];
    unsettled |= other.index == kUnsettled;
    if (nearer(other, nearest)) nearest = other;
  }
  if (unsettled || nearest.index == kNoIndex) {
    const auto place = static_cast<int64_t>(
        atomicAdd(reinterpret_cast<unsigned long long*>(&facts->unsettled), 1ull));
    list[place] = n;
    indices[n] = listed_at(place);
  } else {
    indices[n] = nearest.index;
    distances[n] = static_cast<T>(nearest.distance);
  }
}

}  // namespace
}  // namespace vqvae_fast
