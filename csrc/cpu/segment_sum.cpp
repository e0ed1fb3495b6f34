#include "segment_sum.h"

#include <algorithm>
#include <vector>

#include "../elements.h"

namespace vqvae_fast {
namespace {

// The rows of each segment, in row order: those of segment k are rows[begin[k]] ...
// rows[begin[k + 1] - 1]. A counting sort: O(N + K).
struct Segments {
  std::vector<int64_t> begin;
  std::vector<int64_t> rows;
};

Segments sort_rows(const int64_t* indices, int64_t count, int64_t num_segments) {
  Segments segments;
  segments.begin.assign(num_segments + 1, 0);
  for (int64_t n = 0; n < count; ++n) {
    if (indices[n] >= 0) ++segments.begin[indices[n] + 1];
  }
  for (int64_t k = 0; k < num_segments; ++k) segments.begin[k + 1] += segments.begin[k];
  segments.rows.resize(segments.begin[num_segments]);
  std::vector<int64_t> next(segments.begin.begin(), segments.begin.end() - 1);
  for (int64_t n = 0; n < count; ++n) {
    if (indices[n] >= 0) segments.rows[next[indices[n]]++] = n;
  }
  return segments;
}

// Rows that lie together: segment by segment, each part of the pool with as many rows as the next.
template <class In>
void sum_by_segment(const Rows<const In>& src, const int64_t* indices, int64_t num_segments,
                    Compute<In>* sums, Compute<In>* counts, const ThreadPool& pool) {
  using T = Compute<In>;
  const Segments segments = sort_rows(indices, src.count, num_segments);
  const auto& begin = segments.begin;
  // Work is a row to read or a segment to write; begin[k] + k grows with both.
  const int64_t work = begin[num_segments] + num_segments;
  const int64_t parts = std::min(pool.num_threads, num_segments);
  const auto first_segment = [&](int64_t part) {
    const int64_t target = part_begin(work, parts, part);
    int64_t low = 0, high = num_segments;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (begin[middle] + middle < target) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  pool.run(parts, [&](int64_t part) {
    std::vector<double> sum(src.dim);
    const int64_t last = part + 1 == parts ? num_segments : first_segment(part + 1);
    for (int64_t k = first_segment(part); k < last; ++k) {
      T* out = sums + k * src.dim;
      counts[k] = T(begin[k + 1] - begin[k]);
      std::fill(sum.begin(), sum.end(), 0.0);
      for (int64_t i = begin[k]; i < begin[k + 1]; ++i) {
        const In* row = src.row(segments.rows[i]);
        for (int64_t d = 0; d < src.dim; ++d) sum[d] += widen(row[d]);
      }
      for (int64_t d = 0; d < src.dim; ++d) out[d] = T(sum[d]);
    }
  });
}

// Feature maps, whose rows do not lie together: dimension by dimension, each read in order.
template <class In>
void sum_by_dimension(const Rows<const In>& src, const int64_t* indices, int64_t num_segments,
                      Compute<In>* sums, Compute<In>* counts, const ThreadPool& pool) {
  using T = Compute<In>;
  const int64_t parts = std::min(pool.num_threads, src.dim);
  pool.run(parts, [&](int64_t part) {
    std::vector<double> sum(num_segments);
    const int64_t last = part_begin(src.dim, parts, part + 1);
    for (int64_t d = part_begin(src.dim, parts, part); d < last; ++d) {
      std::fill(sum.begin(), sum.end(), 0.0);
      for (int64_t n = 0; n < src.count; ++n) {
        if (indices[n] >= 0) sum[indices[n]] += widen(src.row(n)[d * src.element_stride]);
      }
      for (int64_t k = 0; k < num_segments; ++k) sums[k * src.dim + d] = T(sum[k]);
    }
  });
  std::vector<int64_t> count(num_segments);
  for (int64_t n = 0; n < src.count; ++n) {
    if (indices[n] >= 0) ++count[indices[n]];
  }
  std::transform(count.begin(), count.end(), counts, [](int64_t c) { return T(c); });
}

}  // namespace

template <class In>
bool segment_sum(const Rows<const In>& src, const int64_t* indices, int64_t num_segments,
                 Compute<In>* sums, Compute<In>* counts, const ThreadPool& pool) {
  for (int64_t n = 0; n < src.count; ++n) {
    if (indices[n] >= num_segments) return false;
  }
  if (src.element_stride == 1 || src.dim == 1) {
    sum_by_segment(src, indices, num_segments, sums, counts, pool);
  } else {
    sum_by_dimension(src, indices, num_segments, sums, counts, pool);
  }
  return true;
}

#define VQVAE_FAST_INSTANTIATE(In)                                                        \
  template bool segment_sum(const Rows<const In>&, const int64_t*, int64_t, Compute<In>*, \
                            Compute<In>*, const ThreadPool&)
VQVAE_FAST_INSTANTIATE(float);
VQVAE_FAST_INSTANTIATE(double);
VQVAE_FAST_INSTANTIATE(BFloat16);
VQVAE_FAST_INSTANTIATE(Half);

}  // namespace vqvae_fast
