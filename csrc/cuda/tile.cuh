// Scores the rows of one block in float32 against a range of code tiles. Each of the 16 threads
// that share a row keeps its best and its second best score.
#pragma once

#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>

#include "../elements.h"
#include "../rows.h"
#include "book.cuh"

namespace vqvae_fast {

// Tile divides a tile among threads. Each thread has 8 x 8 scores in registers: rows (or codes) 4 i
// ... 4 i + 3 of the first half of the tile and of the second, so that neighbouring threads read
// neighbouring 16 bytes.
template <int kRowThreads_>
struct Tile {
  static constexpr int kRowThreads = kRowThreads_;
  static constexpr int kCodeThreads = 16;  // half a warp: rows are settled by its shuffles
  static constexpr int kThreads = kRowThreads * kCodeThreads;
  static constexpr int kRows = 8 * kRowThreads;
  static constexpr int kDepth = 8;  // elements of rows and codes in shared memory at a time
  // Each thread gets 170 registers, because with fewer the accumulators spill.
  static constexpr int kBlocksPerProcessor = 384 / kThreads;
  static_assert(kTileCodes == 8 * kCodeThreads && kThreads % 32 == 0);
};

namespace {

// Returns which row of the tile the i-th row of a thread is; codes are numbered alike.
template <int kThreadsAcross>
__device__ __forceinline__ int place_in_tile(int thread, int i) {
  return i / 4 * 4 * kThreadsAcross + thread * 4 + i % 4;
}

template <class Tile>
struct Stage {
  // Rows are padded by 16 bytes, so that a warp that writes 8 elements of 4 rows meets each bank
  // once.
  float rows[Tile::kDepth][Tile::kRows + 4];
  float codes[Tile::kDepth][kTileCodes];
};

// Best holds each thread's best scores for its 8 rows. They are needed once a tile, and the scores
// fill the registers, so they lie in shared memory; no thread reads another's. Codes are counted
// from the first of the block's range.
template <class Tile>
struct Best {
  float4 score[2][Tile::kThreads];
  float4 second[2][Tile::kThreads];
  int4 code[2][Tile::kThreads];

  // These return this thread's values for its i-th row.
  __device__ __forceinline__ float score_of(int i) const { return of(score, i); }
  __device__ __forceinline__ float second_of(int i) const { return of(second, i); }
  __device__ __forceinline__ int code_of(int i) const { return of(code, i); }

 private:
  template <class Four>
  __device__ __forceinline__ static auto of(const Four (&values)[2][Tile::kThreads], int i) {
    const Four four = values[i / 4][threadIdx.x];
    return i % 4 == 0 ? four.x : i % 4 == 1 ? four.y : i % 4 == 2 ? four.z : four.w;
  }
};

// Carries the elements of the next step from global to shared memory, through registers: it loads
// them before the arithmetic of this step and stores them after it.
template <class In, class Tile>
class Feeder {
 public:
  __device__ __forceinline__ Feeder(const Rows<const In>& z, const Book& book, float scale,
                                    const In* const* row_start)
      : z_(z), book_(book), scale_(scale), row_start_(row_start) {
    const int t = static_cast<int>(threadIdx.x);
    // If the elements of a row are contiguous, 8 threads read them; if rows are, neighbouring
    // threads read neighbouring rows.
    const bool along_rows = z.element_stride != 1;
    row_ = along_rows ? t % kRowStep : t / Tile::kDepth;
    depth_ = along_rows ? t / kRowStep : t % Tile::kDepth;
  }

  // Loads elements from, from + 1, ... of the rows and of the codes, which lie at `codes`.
  __device__ __forceinline__ void load(int from, const float* codes) {
    const int t = static_cast<int>(threadIdx.x), dim = static_cast<int>(z_.dim);
    const bool inside = from + depth_ < dim;
    centre_ = inside ? book_.centre[from + depth_] : 0.0f;
    const int64_t element = (inside ? from + depth_ : 0) * z_.element_stride;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      rows_[i] = inside ? widen(row_start_[row_ + i * kRowStep][element]) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kCodeLoads; ++i) {
      const int at = t + i * Tile::kThreads;
      codes_[i] = from + at / (kTileCodes / 4) < dim ? reinterpret_cast<const float4*>(codes)[at]
                                                     : float4{0, 0, 0, 0};
    }
  }

  __device__ __forceinline__ void store(Stage<Tile>& stage) const {
    const int t = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      stage.rows[depth_][row_ + i * kRowStep] = __fmaf_rn(rows_[i], scale_, -centre_);
    }
    float4* codes = reinterpret_cast<float4*>(&stage.codes[0][0]);
#pragma unroll
    for (int i = 0; i < kCodeLoads; ++i) codes[t + i * Tile::kThreads] = codes_[i];
  }

 private:
  static constexpr int kRowStep = Tile::kThreads / Tile::kDepth;
  static constexpr int kCodeLoads = Tile::kDepth * kTileCodes / 4 / Tile::kThreads;
  static_assert(kRowStep * 4 == Tile::kRows && kCodeLoads >= 1);

  const Rows<const In>& z_;
  const Book& book_;
  float scale_;
  const In* const* row_start_;  // [kRows], shared memory
  int row_, depth_;
  float rows_[4];
  float centre_;
  float4 codes_[kCodeLoads];
};

template <class Tile>
__device__ __forceinline__ void multiply(const Stage<Tile>& stage, float (&score)[8][8]) {
  const int row_thread = static_cast<int>(threadIdx.x) / Tile::kCodeThreads;
  const int code_thread = static_cast<int>(threadIdx.x) % Tile::kCodeThreads;
#pragma unroll
  for (int d = 0; d < Tile::kDepth; ++d) {
    const float4* rows = reinterpret_cast<const float4*>(stage.rows[d]);
    const float4* codes = reinterpret_cast<const float4*>(stage.codes[d]);
    const float4 z0 = rows[row_thread], z1 = rows[row_thread + Tile::kRowThreads];
    const float4 e0 = codes[code_thread], e1 = codes[code_thread + Tile::kCodeThreads];
    const float z[8] = {z0.x, z0.y, z0.z, z0.w, z1.x, z1.y, z1.z, z1.w};
    const float e[8] = {e0.x, e0.y, e0.z, e0.w, e1.x, e1.y, e1.z, e1.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) score[i][j] = __fmaf_rn(z[i], e[j], score[i][j]);
    }
  }
}

// Starts the scores from half_norm.
__device__ __forceinline__ void start_scores(const float* half_norm, int code_thread,
                                             float (&score)[8][8]) {
  const float4* from = reinterpret_cast<const float4*>(half_norm);
  const float4 a = from[code_thread], b = from[code_thread + kTileCodes / 8];
  const float values[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int j = 0; j < 8; ++j) score[i][j] = values[j];
  }
}

__device__ __forceinline__ void keep_best(const float (&score)[8], int first_code, int code_thread,
                                          float& best, float& second, int& code) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const bool better = score[j] > best;
    second = fmaxf(second, fminf(best, score[j]));
    best = fmaxf(best, score[j]);
    code = better ? first_code + place_in_tile<kTileCodes / 8>(code_thread, j) : code;
  }
}

template <class Tile>
__device__ __forceinline__ void keep_best(const float (&score)[8][8], int first_code,
                                          Best<Tile>& all) {
  const int t = static_cast<int>(threadIdx.x), code_thread = t % Tile::kCodeThreads;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float4 best = all.score[h][t], second = all.second[h][t];
    int4 code = all.code[h][t];
    keep_best(score[4 * h], first_code, code_thread, best.x, second.x, code.x);
    keep_best(score[4 * h + 1], first_code, code_thread, best.y, second.y, code.y);
    keep_best(score[4 * h + 2], first_code, code_thread, best.z, second.z, code.z);
    keep_best(score[4 * h + 3], first_code, code_thread, best.w, second.w, code.w);
    all.score[h][t] = best;
    all.second[h][t] = second;
    all.code[h][t] = code;
  }
}

// Scores tiles [first, last) of the book. All threads of the block must call this; row_start and
// stages are in shared memory, and no thread may write them meanwhile.
template <class In, class Tile>
__device__ __forceinline__ void search_tiles(const Rows<const In>& z, const Book& book,
                                             int64_t first, int64_t last,
                                             const In* const* row_start, Stage<Tile>* stages,
                                             Best<Tile>& best) {
  const int t = static_cast<int>(threadIdx.x), code_thread = t % Tile::kCodeThreads;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    best.score[h][t] = best.second[h][t] = {-HUGE_VALF, -HUGE_VALF, -HUGE_VALF, -HUGE_VALF};
    best.code[h][t] = {0, 0, 0, 0};
  }
  // Filtered rows are short enough to count their elements in 32 bits.
  const int dim = static_cast<int>(z.dim), tiles = static_cast<int>(last - first);
  const float* codes = book.codes + first * dim * kTileCodes;
  const float* half_norm = book.half_norm + first * kTileCodes;
  Feeder<In, Tile> feeder(z, book, book.facts->scale, row_start);
  feeder.load(0, codes);
  feeder.store(stages[0]);
  __syncthreads();
  float score[8][8];
  start_scores(half_norm, code_thread, score);
  int tile = 0, from = 0;
  for (int current = 0; tile < tiles; current ^= 1) {
    const int next = from + Tile::kDepth < dim ? from + Tile::kDepth : 0;
    codes += (next == 0 ? dim - from : Tile::kDepth) * kTileCodes;  // tiles are contiguous
    const bool more = next != 0 || tile + 1 < tiles;
    if (more) feeder.load(next, codes);
    multiply<Tile>(stages[current], score);
    if (next == 0) {
      keep_best(score, tile * kTileCodes, best);
      ++tile;
      if (more) start_scores(half_norm + tile * kTileCodes, code_thread, score);
    }
    // All threads finished reading the other stage before the last barrier.
    if (more) feeder.store(stages[current ^ 1]);
#ifndef VQVAE_FAST_TEST_WITHOUT_BARRIER  // a test removes the barrier and must notice
    __syncthreads();
#endif
    from = next;
  }
}

}  // namespace
}  // namespace vqvae_fast
