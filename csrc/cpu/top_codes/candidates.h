// TopCandidates holds the codes of a row that may be among its k nearest and are not measured yet.
// docs/exactness.md ("The k nearest codes") derives the bound that rules the others out.
#pragma once

#include <stdint.h>

#include "../../elements.h"
#include "../exact.h"
#include "../prefetch.h"
#include "measured.h"

namespace vqvae_fast {
namespace {

// Returns a score that at least k of the scores reach, and about k if their values allow it. The
// scores lie in [lowest, highest], and at least k reach `lowest`; count_reaching(score) counts. It
// bisects. Any lower bound of the k-th largest score is correct, so it stops when it is close.
template <class Score, class Count>
inline Score score_of_kth(Score lowest, Score highest, int64_t k, Count count_reaching) {
  constexpr int kMostSteps = 40;
  const int64_t close = k + k / 16 + 4;
  for (int step = 0; step < kMostSteps; ++step) {
    // In int32 the difference of two scores could overflow, half of each does not.
    const Score middle = lowest / 2 + highest / 2;
    if (!(lowest < middle && middle < highest)) break;
    const int64_t count = count_reaching(middle);
    if (count >= k) lowest = middle;
    if (count < k) highest = middle;
    if (count >= k && count <= close) break;
  }
  return lowest;
}

template <class Score>
struct TopCandidates {
  Score* scores;     // [count]
  int64_t* indices;  // [count], ascending
  int64_t count;

  void append(Score score, int64_t index) {
    scores[count] = score;
    indices[count] = index;
    ++count;
  }

  // Returns a score that at least k of the scores reach; there must be so many.
  Score score_of_kth(int64_t k) const {
    Score lowest = scores[0], highest = scores[0];
    for (int64_t i = 1; i < count; ++i) {
      lowest = scores[i] < lowest ? scores[i] : lowest;
      highest = scores[i] > highest ? scores[i] : highest;
    }
    return vqvae_fast::score_of_kth(lowest, highest, k, [&](Score score) {
      int32_t reaching = 0;
      for (int64_t i = 0; i < count; ++i) reaching += scores[i] >= score;
      return int64_t{reaching};
    });
  }

  void drop_below(Score bound) {
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
      const Score score = scores[i];
      scores[kept] = score;
      indices[kept] = indices[i];
      kept += score >= bound;
    }
    count = kept;
  }
};

// Measures the listed codes. Those lie apart in memory, so no hardware prefetcher finds them.
template <class Doubles, class In>
VQVAE_FAST_ALONE void measure_list(const ListedCodes<In>& codes, const Compute<In>* raw,
                                   const int64_t* indices, int64_t count, Measured* out) {
  constexpr int kTogether = 4, kAhead = 8;
  const ListedCodes<In> local = codes;  // a copy stays in registers: no write can alias it
  const bool prefetches = local.element_stride == 1;
  for (int64_t i = 0; i < count; i += kTogether) {
    const In* code[kTogether];
    double distances[kTogether];
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kTogether; ++j) {
      code[j] = local.row(indices[i + j < count ? i + j : count - 1]);
      if (prefetches && i + j + kAhead < count) {
        prefetch_row(local.row(indices[i + j + kAhead]), local.dim);
      }
    }
    measure<Doubles>(raw, code, local.element_stride, local.dim, distances);
    for (int64_t j = 0; j < kTogether && i + j < count; ++j) {
      out[i + j] = {distances[j], indices[i + j]};
    }
  }
}

}  // namespace
}  // namespace vqvae_fast
