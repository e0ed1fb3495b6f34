// Rows are sorted by segment. Then chunks of the sorted list are summed, with one thread for each
// chunk and element. A segment within one chunk is then complete. For a segment that goes on in
// another chunk, the chunk leaves a piece, and the pieces are summed in the same way, until one
// chunk holds them all. So one segment of all rows is as fast as many small ones, and the order of
// all additions is fixed.
#pragma once

#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>

#include "../arena.h"
#include "../elements.h"
#include "../rows.h"
#include "launch.cuh"
#include "narrow.h"
#include "segment_sum.h"
#include "sort.h"

namespace vqvae_fast {
namespace {

constexpr int64_t kChunk = 64;
constexpr int kSumThreads = 128;
constexpr uint32_t kNoSegment = UINT32_MAX;  // the segment of a row or piece that belongs to none

// Labels each row with its segment, so that rows that belong to none are sorted behind all others.
__global__ void __launch_bounds__(kSumThreads)
    label_rows(const int64_t* indices, int64_t count, int64_t num_segments, uint32_t* segments,
               int64_t* rows, int* any_bad) {
  const int64_t n = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (n >= count) return;
  const int64_t index = indices[n];
  if (index >= num_segments) atomicOr(any_bad, 1);
  const bool member = index >= 0 && index < num_segments;
  segments[n] = static_cast<uint32_t>(member ? index : num_segments);
  rows[n] = n;
}

// SortedRows is the source of the first round: a chunk sums rows.
template <class In>
struct SortedRows {
  Rows<const In> src;
  const int64_t* rows;

  __device__ __forceinline__ double value(int64_t i, uint32_t, int64_t d) const {
    return double(widen(src.row(rows[i])[d * src.element_stride]));
  }
};
// SortedErrors is another first source: a chunk sums the rows' errors z - e, rounded as the layer's
// errors are.
template <class In>
struct SortedErrors {
  Rows<const In> z;
  Codes<In> codes;
  const int64_t* rows;

  __device__ __forceinline__ double value(int64_t i, uint32_t segment, int64_t d) const {
    return double(widen(z.row(rows[i])[d * z.element_stride]) -
                  widen(codes.row(segment)[d * codes.element_stride]));
  }
};

// Pieces is the source of the other rounds: a chunk sums the pieces that the last round left.
struct Pieces {
  const double* sums;  // [pieces][D]
  int64_t dim;

  __device__ __forceinline__ double value(int64_t i, uint32_t, int64_t d) const {
    return sums[i * dim + d];
  }
};

// WriteSum writes the sum of a whole segment as it is.
template <class T>
struct WriteSum {
  T* sums;  // [K][D]
  int64_t dim;

  __device__ __forceinline__ void operator()(uint32_t segment, int64_t d, double sum) const {
    sums[segment * dim + d] = static_cast<T>(sum);
  }
};
// WriteGradient writes the sum as the gradient of a code.
template <class In>
struct WriteGradient {
  In* gradients;  // [K][D]
  int64_t dim;
  const Compute<In>* grad_loss;
  Compute<In> per_loss;  // 2 / elements
  Compute<In> weight;

  __device__ __forceinline__ void operator()(uint32_t segment, int64_t d, double sum) const {
    using T = Compute<In>;
    gradients[segment * dim + d] =
        Narrow<In>::from(static_cast<T>(sum) * (*grad_loss * per_loss * -weight));
  }
};

// A Piece is the sum of a chunk's part of a segment that goes on in another chunk.
struct Piece {
  uint32_t segment;
  double sum;
};

// Sums chunks, with a thread for each chunk and element. A chunk leaves two pieces at most, for the
// segment that it begins in and for the one that it ends in. Both places are always written,
// because the next round reads them in order: a place without a piece gets a zero, which the next
// round adds to the segment of the other place.
template <class Source, class Write>
__global__ void __launch_bounds__(kSumThreads)
    add_chunks(const uint32_t* segments, int64_t count, uint32_t num_segments, Source source,
               int64_t dim, Write write, uint32_t* piece_segments, double* pieces) {
  const int64_t chunks = (count + kChunk - 1) / kChunk;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < chunks * dim; i += step) {
    const int64_t chunk = i / dim, d = i % dim;
    const int64_t begin = chunk * kChunk;
    const int64_t end = begin + kChunk < count ? begin + kChunk : count;
    const uint32_t before = begin > 0 ? segments[begin - 1] : kNoSegment;
    const uint32_t behind = end < count ? segments[end] : kNoSegment;
    Piece head{kNoSegment, 0}, tail{kNoSegment, 0};
    double sum = 0;
    uint32_t segment = segments[begin];
    for (int64_t at = begin; at < end; ++at) {
      const bool member = segment < num_segments, ends = at + 1 == end;
      if (member) sum += source.value(at, segment, d);
      const uint32_t next = ends ? behind : segments[at + 1];
      if (next == segment && !ends) continue;
      if (member && segment == before) {
        head = {segment, sum};
      } else if (member && segment == behind) {
        tail = {segment, sum};
      } else if (member) {
        write(segment, d, sum);
      }
      sum = 0;
      segment = next;
    }
    if (piece_segments == nullptr) continue;
    if (d == 0) {
      piece_segments[2 * chunk] = head.segment == kNoSegment ? tail.segment : head.segment;
      piece_segments[2 * chunk + 1] = tail.segment == kNoSegment ? head.segment : tail.segment;
    }
    pieces[2 * chunk * dim + d] = head.sum;
    pieces[(2 * chunk + 1) * dim + d] = tail.sum;
  }
}

// Returns the first of the sorted rows that belongs to `segment` or a later one.
__device__ inline int64_t first_row_of(const uint32_t* segments, int64_t count, int64_t segment) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (segments[middle] < segment) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

template <class T>
__global__ void __launch_bounds__(kSumThreads)
    count_rows(const uint32_t* segments, int64_t count, int64_t num_segments, int64_t dim,
               const int* any_bad, T* sums, T* counts) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t k = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; k < num_segments; k += step) {
    const int64_t rows = first_row_of(segments, count, k + 1) - first_row_of(segments, count, k);
    counts[k] = *any_bad != 0 ? static_cast<T>(NAN) : static_cast<T>(rows);
    if (*any_bad == 0) continue;
    for (int64_t d = 0; d < dim; ++d) sums[k * dim + d] = static_cast<T>(NAN);
  }
}

struct SumPlan {
  int* any_bad;
  uint32_t *segments, *sorted_segments;
  int64_t *rows, *sorted_rows;
  // One of the two holds the pieces of a round, the other those of the next.
  uint32_t* piece_segments[2];
  double* pieces[2];
  void* sort_workspace;
  size_t sort_bytes;
  int bits;
  int64_t bytes;
  cudaError_t error;
};

inline SumPlan plan_sum(int64_t count, int64_t dim, int64_t num_segments, void* workspace) {
  SumPlan plan{};
  Arena arena(workspace, kDeviceAlignment);
  plan.any_bad = arena.take<int>(1);
  plan.segments = arena.take<uint32_t>(count);
  plan.sorted_segments = arena.take<uint32_t>(count);
  plan.rows = arena.take<int64_t>(count);
  plan.sorted_rows = arena.take<int64_t>(count);
  int64_t pieces = count;
  for (int round = 0; round < 2; ++round) {
    pieces = 2 * ceil_divide(pieces, kChunk);
    plan.piece_segments[round] = arena.take<uint32_t>(pieces);
    plan.pieces[round] = arena.take<double>(pieces * dim);
  }
  while (num_segments >> plan.bits != 0) ++plan.bits;
  plan.error = sort_by_segment(nullptr, &plan.sort_bytes, nullptr, nullptr, nullptr, nullptr, count,
                               plan.bits, nullptr);
  plan.sort_workspace = arena.take<char>(static_cast<int64_t>(plan.sort_bytes));
  plan.bytes = arena.bytes();
  return plan;
}

// Sorts the rows by segment; rows that belong to none come last.
inline void sort_rows(const SumPlan& plan, const int64_t* indices, int64_t count,
                      int64_t num_segments, Launcher& launch) {
  launch.enqueue([&](cudaStream_t stream) {
    return cudaMemsetAsync(plan.any_bad, 0, sizeof *plan.any_bad, stream);
  });
  launch(label_rows, blocks_for(count, kSumThreads), kSumThreads, indices, count, num_segments,
         plan.segments, plan.rows, plan.any_bad);
  launch.enqueue([&](cudaStream_t stream) {
    size_t bytes = plan.sort_bytes;
    return sort_by_segment(plan.sort_workspace, &bytes, plan.segments, plan.sorted_segments,
                           plan.rows, plan.sorted_rows, count, plan.bits, stream);
  });
}

// Sums all chunks, and calls write for every element of every segment that has rows.
template <class Source, class Write>
void add_sorted(const SumPlan& plan, int64_t count, int64_t dim, int64_t num_segments,
                Source source, Write write, Launcher& launch) {
  const auto segments = static_cast<uint32_t>(num_segments);
  const uint32_t* of = plan.sorted_segments;
  for (int round = 0; count > 0; ++round) {
    const int64_t chunks = ceil_divide(count, kChunk);
    const bool last = chunks == 1;
    uint32_t* next = last ? nullptr : plan.piece_segments[round % 2];
    double* left = plan.pieces[round % 2];
    const dim3 blocks = blocks_for(chunks * dim, kSumThreads);
    if (round == 0) {
      launch(add_chunks<Source, Write>, blocks, kSumThreads, of, count, segments, source, dim,
             write, next, left);
    } else {
      const Pieces pieces{plan.pieces[(round + 1) % 2], dim};
      launch(add_chunks<Pieces, Write>, blocks, kSumThreads, of, count, segments, pieces, dim,
             write, next, left);
    }
    of = next;
    count = last ? 0 : 2 * chunks;
  }
}

template <class In>
cudaError_t run_segment_sum(const Rows<const In>& src, const int64_t* indices, int64_t num_segments,
                            Compute<In>* sums, Compute<In>* counts, void* workspace,
                            cudaStream_t stream) {
  using T = Compute<In>;
  const SumPlan plan = plan_sum(src.count, src.dim, num_segments, workspace);
  if (plan.error != cudaSuccess) return plan.error;
  Launcher launch(stream);
  const int64_t elements = num_segments * src.dim;
  launch.enqueue([&](cudaStream_t s) {
    return cudaMemsetAsync(sums, 0, static_cast<size_t>(elements) * sizeof(T), s);
  });
  if (src.count > 0) {
    sort_rows(plan, indices, src.count, num_segments, launch);
    if (src.dim > 0) {
      add_sorted(plan, src.count, src.dim, num_segments, SortedRows<In>{src, plan.sorted_rows},
                 WriteSum<T>{sums, src.dim}, launch);
    }
    launch(count_rows<T>, blocks_for(num_segments, kSumThreads), kSumThreads, plan.sorted_segments,
           src.count, num_segments, src.dim, plan.any_bad, sums, counts);
  } else {
    launch.enqueue([&](cudaStream_t s) {
      return cudaMemsetAsync(counts, 0, static_cast<size_t>(num_segments) * sizeof(T), s);
    });
  }
  return launch.error();
}

// Computes the gradient of z, element by element in the memory order of the result: along rows, or
// along feature maps. per_loss: 2 / elements; the host divides, because float64 is slow on many
// GPUs.
template <class In>
__global__ void __launch_bounds__(kSumThreads)
    add_commitment(QuantizeBackward<In> pass, Compute<In> per_loss, Compute<In> weight) {
  using T = Compute<In>;
  const Rows<const In>& z = pass.z;
  const bool along_rows = pass.grad_z.element_stride != 1;
  const int64_t step = int64_t{gridDim.x} * blockDim.x, total = z.count * z.dim;
  const T factor = *pass.grad_loss * per_loss * weight;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < total; i += step) {
    const int64_t n = along_rows ? i % z.count : i / z.dim;
    const int64_t d = along_rows ? i / z.count : i % z.dim;
    const int64_t index = pass.indices[n];
    T gradient = widen(pass.grad_quantized.row(n)[d * pass.grad_quantized.element_stride]);
    if (index >= 0 && index < pass.codes.count) {
      gradient += factor * (widen(z.row(n)[d * z.element_stride]) -
                            widen(pass.codes.row(index)[d * pass.codes.element_stride]));
    }
    pass.grad_z.row(n)[d * pass.grad_z.element_stride] = Narrow<In>::from(gradient);
  }
}

template <class In>
cudaError_t run_backward(const QuantizeBackward<In>& pass, void* workspace, cudaStream_t stream) {
  using T = Compute<In>;
  const Rows<const In>& z = pass.z;
  const SumPlan plan = plan_sum(z.count, z.dim, pass.codes.count, workspace);
  if (plan.error != cudaSuccess) return plan.error;
  Launcher launch(stream);
  launch.enqueue([&](cudaStream_t s) {
    const int64_t elements = pass.codes.count * z.dim;
    return cudaMemsetAsync(pass.grad_codebook, 0, static_cast<size_t>(elements) * sizeof(In), s);
  });
  if (z.count == 0) return launch.error();
  const auto per_loss = static_cast<T>(2 / pass.elements);
  launch(add_commitment<In>, blocks_for(z.count * z.dim, kSumThreads), kSumThreads, pass, per_loss,
         static_cast<T>(pass.commitment_weight));
  sort_rows(plan, pass.indices, z.count, pass.codes.count, launch);
  const WriteGradient<In> write{pass.grad_codebook, z.dim, pass.grad_loss, per_loss,
                                static_cast<T>(pass.codebook_weight)};
  add_sorted(plan, z.count, z.dim, pass.codes.count,
             SortedErrors<In>{z, pass.codes, plan.sorted_rows}, write, launch);
  return launch.error();
}

}  // namespace
}  // namespace vqvae_fast
