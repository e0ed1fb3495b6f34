// Packs a codebook for the float32 scores: centred, scaled by a power of two, in tiles of codes
// that a block reads in order.
#pragma once

#include <cuda_runtime.h>
#include <float.h>
#include <math.h>
#include <stdint.h>

#include "../elements.h"
#include "../rows.h"

namespace vqvae_fast {

// A block of the search holds this many codes at a time.
constexpr int kTileCodes = 128;

// These are the limits of packed norms, |E| and |Z|. A code beyond kFar is not packed, because its
// score could overflow: it can only be near a row that is far from the centre, and those rows are
// measured one by one. With |Z| <= kFarRow no score reaches 2^120.
constexpr double kFar = 0x1p60;
constexpr double kFarRow = 0x1p58;

// BookFacts holds facts about the codebook that the device finds. The host never reads them.
struct BookFacts {
  float scale;        // a power of two
  float max_norm;     // upper bound of |E| over the packed codes
  int any_far;        // whether a finite code was not packed
  int64_t unsettled;  // rows on the list of those to be measured against all codes
};

// A Book holds the packed codes, E = scale * e - centre. Any centre and any power of two are
// correct; good ones keep the numbers, and with them the error bound, small.
struct Book {
  float* centre;     // [D], scaled
  float* codes;      // [tiles][D][kTileCodes]
  float* half_norm;  // [tiles][kTileCodes]: -|E|^2/2; -inf for padding and unpacked codes
  BookFacts* facts;
  int64_t tiles;
};

namespace {

constexpr int kPrepareThreads = 256;
constexpr int kSamples = 9;

// Returns the middle one of the first `count` samples, which must be finite.
__device__ inline float median(float (&samples)[kSamples], int count) {
  for (int i = 1; i < count; ++i) {
    const float moved = samples[i];
    int at = i;
    for (; at > 0 && samples[at - 1] > moved; --at) samples[at] = samples[at - 1];
    samples[at] = moved;
  }
  return count > 0 ? samples[count / 2] : 0.0f;
}

// Finds the centre and the scale, with one block. The centre is the elementwise median of nine
// codes spread over the book, and the scale brings the median of their largest elements to about 1:
// both stay put when a few codes are far away, dead, or not finite.
template <class In>
__global__ void __launch_bounds__(kPrepareThreads) prepare_book(Codes<In> codes, Book book) {
  __shared__ float largest[kPrepareThreads][kSamples];
  const int t = static_cast<int>(threadIdx.x);
  const int wanted = static_cast<int>(codes.count < kSamples ? codes.count : kSamples);
  const In* sample[kSamples];
  for (int s = 0; s < wanted; ++s) {
    sample[s] = codes.row(codes.count / wanted * s + codes.count % wanted * s / wanted);
    largest[t][s] = 0.0f;
  }
  for (int64_t d = t; d < codes.dim; d += kPrepareThreads) {
    float values[kSamples], sorted[kSamples];
    int finite = 0;
    for (int s = 0; s < wanted; ++s) {
      values[s] = widen(sample[s][d * codes.element_stride]);
      if (isfinite(values[s])) sorted[finite++] = values[s];
    }
    const float centre = median(sorted, finite);
    book.centre[d] = centre;
    for (int s = 0; s < wanted; ++s) {
      const float magnitude = fminf(fabsf(values[s] - centre), FLT_MAX);
      if (isfinite(values[s])) largest[t][s] = fmaxf(largest[t][s], magnitude);
    }
  }
  __syncthreads();
  for (int half = kPrepareThreads / 2; half > 0; half /= 2) {
    if (t < half) {
      for (int s = 0; s < wanted; ++s) {
        largest[t][s] = fmaxf(largest[t][s], largest[t + half][s]);
      }
    }
    __syncthreads();
  }
  float magnitudes[kSamples];
  for (int s = 0; s < wanted; ++s) magnitudes[s] = largest[0][s];
  const float middle = median(magnitudes, wanted);
  const float typical = middle > 0 ? middle : magnitudes[wanted - 1];
  int exponent = 0;
  if (typical > 0) frexpf(typical, &exponent);
  const float scale = ldexpf(1.0f, exponent < -126 ? 126 : -exponent);
  for (int64_t d = t; d < codes.dim; d += kPrepareThreads) book.centre[d] *= scale;
  if (t == 0) *book.facts = {scale, 0.0f, 0, 0};
}

// Packs the codes, with a block for each tile and a thread for each of its codes. Reads the codes
// in the order of memory and writes them in the order of the search, through shared memory.
template <class In>
__global__ void __launch_bounds__(kTileCodes) pack_book(Codes<In> codes, Book book) {
  constexpr int kDepth = 32;
  __shared__ float staged[kDepth][kTileCodes + 1];
  __shared__ unsigned max_norm;  // the bits of a non-negative float, which have its order
  const int t = static_cast<int>(threadIdx.x);
  const float scale = book.facts->scale;
  const bool along_codes = codes.element_stride != 1;
  for (int64_t tile = blockIdx.x; tile < book.tiles; tile += gridDim.x) {
    if (t == 0) max_norm = 0;
    const int64_t first = tile * kTileCodes;
    float* packed = book.codes + tile * codes.dim * kTileCodes;
    double square = 0;
    bool finite = first + t < codes.count;
    for (int64_t from = 0; from < codes.dim; from += kDepth) {
      const int64_t left = codes.dim - from;
      const int depth = left < kDepth ? static_cast<int>(left) : kDepth;
      __syncthreads();
      for (int i = t; i < kDepth * kTileCodes; i += kTileCodes) {
        const int d = along_codes ? i / kTileCodes : i % kDepth;
        const int c = along_codes ? i % kTileCodes : i / kDepth;
        if (d >= depth) continue;
        float value = 0.0f;
        if (first + c < codes.count) {
          value = widen(codes.row(first + c)[(from + d) * codes.element_stride]);
          // This rounds once. A value that is not finite stays so, and one that overflows becomes
          // so.
          value = __fmaf_rn(value, scale, -book.centre[from + d]);
        }
        staged[d][c] = value;
      }
      __syncthreads();
      for (int d = 0; d < depth; ++d) {
        const float value = staged[d][t];
        packed[(from + d) * kTileCodes + t] = value;
        square += double(value) * double(value);
      }
    }
    // A code may also be beyond kFar because centring or scaling overflowed.
    const bool near = first + t < codes.count && square <= kFar * kFar;
    if (!near) {
      for (int64_t d = 0; d < codes.dim; ++d) {
        packed[d * kTileCodes + t] = 0.0f;
        if (finite) {
          finite = isfinite(widen(codes.row(first + t)[d * codes.element_stride]));
        }
      }
      if (finite) atomicOr(&book.facts->any_far, 1);
    } else {
      // The sum is of rounded elements, so the root is raised by far more than all their roundings.
      atomicMax(&max_norm, to_bits(static_cast<float>(sqrt(square) * 1.000001)));
    }
    book.half_norm[first + t] = near ? static_cast<float>(-0.5 * square) : -HUGE_VALF;
    __syncthreads();
    if (t == 0) atomicMax(reinterpret_cast<unsigned*>(&book.facts->max_norm), max_norm);
  }
}

}  // namespace
}  // namespace vqvae_fast
