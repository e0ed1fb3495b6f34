// Rows sorted by the segment that they belong to, and a visit to each.
#pragma once

#include <algorithm>
#include <vector>

#include "../elements.h"
#include "contract.h"
#include "parallel.h"

namespace vqvae_fast {

// The rows of each segment, in row order: those of segment k are rows[begin[k]] ...
// rows[begin[k + 1] - 1].
struct Segments {
  std::vector<int64_t> begin;
  std::vector<int64_t> rows;

  int64_t count() const { return int64_t(begin.size()) - 1; }
  int64_t size(int64_t k) const { return begin[k + 1] - begin[k]; }
};

// Whether all indices are below that.
inline bool all_below(const int64_t* indices, int64_t count, int64_t num_segments) {
  return std::all_of(indices, indices + count, [&](int64_t k) { return k < num_segments; });
}

// A counting sort: O(N + K). Rows with a negative index are left out.
inline Segments sort_rows(const int64_t* indices, int64_t count, int64_t num_segments) {
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

// Calls visit(k, sum) for every segment, with the sum of its rows in row order, double [D], whose
// elements lie together. Each part of the pool has as many rows and segments as the next.
template <class In, class Visit>
void visit_sums(const Segments& segments, const Rows<const In>& src, const ThreadPool& pool,
                Visit visit) {
  const int64_t num_segments = segments.count();
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
      std::fill(sum.begin(), sum.end(), 0.0);
      for (int64_t i = begin[k]; i < begin[k + 1]; ++i) {
        const In* row = src.row(segments.rows[i]);
        for (int64_t d = 0; d < src.dim; ++d) sum[d] += widen(row[d]);
      }
      visit(k, sum.data());
    }
  });
}

}  // namespace vqvae_fast
