// Sorts rows by the segment that they belong to, and visits the segments.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "../contract.h"
#include "../dispatch.h"
#include "../parallel.h"

namespace vqvae_fast {

// Segments lists the segments that have rows. The rows of segment ids[i] are rows[begin[i]] ...
// rows[begin[i + 1] - 1], in row order.
struct Segments {
  int64_t num_segments;
  std::vector<int64_t> ids;  // ascending
  std::vector<int64_t> begin;
  std::vector<int64_t> rows;

  int64_t size(int64_t i) const { return begin[i + 1] - begin[i]; }
  void append(int64_t id, int64_t first_row) {
    ids.push_back(id);
    begin.push_back(first_row);
  }
};

// Returns whether all indices are below num_segments.
inline bool all_below(const int64_t* indices, int64_t count, int64_t num_segments) {
  return std::all_of(indices, indices + count, [&](int64_t k) { return k < num_segments; });
}

// Sorts by counting, in O(N + K).
inline Segments sort_by_counting(const int64_t* indices, int64_t count, int64_t num_segments,
                                 const ThreadPool& pool) {
  // Each part has counters of its own, so a part must have at least as many rows as counters.
  constexpr int64_t kRowsOfPart = 1 << 13;
  const int64_t parts =
      std::clamp<int64_t>(count / std::max(kRowsOfPart, num_segments), 1, pool.num_threads);
  std::vector<int64_t> next(parts * num_segments);
  const auto for_each_row = [&](int64_t part, auto body) {
    int64_t* counters = next.data() + part * num_segments;
    const int64_t end = part_begin(count, parts, part + 1);
    for (int64_t n = part_begin(count, parts, part); n < end; ++n) {
      if (indices[n] >= 0) body(n, counters[indices[n]]);
    }
  };
  pool.run(parts,
           [&](int64_t part) { for_each_row(part, [](int64_t, int64_t& counter) { ++counter; }); });
  Segments segments{num_segments, {}, {}, {}};
  segments.ids.reserve(std::min(count, num_segments));
  segments.begin.reserve(std::min(count, num_segments) + 1);
  int64_t sorted = 0;
  for (int64_t k = 0; k < num_segments; ++k) {
    const int64_t first = sorted;
    for (int64_t part = 0; part < parts; ++part) {
      sorted += std::exchange(next[part * num_segments + k], sorted);
    }
    if (sorted > first) segments.append(k, first);
  }
  segments.begin.push_back(sorted);
  segments.rows.resize(sorted);
  pool.run(parts, [&](int64_t part) {
    for_each_row(part, [&](int64_t n, int64_t& counter) { segments.rows[counter++] = n; });
  });
  return segments;
}

// Sorts by digits from the lowest on, in O(N log K / 11), which is quicker if segments are many
// more than rows.
inline Segments sort_by_digits(const int64_t* indices, int64_t count, int64_t num_segments) {
  constexpr int kBits = 11;
  constexpr int64_t kDigits = 1 << kBits;
  std::vector<int64_t> rows, other;
  for (int64_t n = 0; n < count; ++n) {
    if (indices[n] >= 0) rows.push_back(n);
  }
  other.resize(rows.size());
  for (int shift = 0; (num_segments - 1) >> shift > 0; shift += kBits) {
    const auto digit = [&](int64_t n) { return indices[n] >> shift & (kDigits - 1); };
    int64_t next[kDigits + 1] = {};
    for (int64_t n : rows) ++next[digit(n) + 1];
    for (int64_t d = 0; d < kDigits; ++d) next[d + 1] += next[d];
    for (int64_t n : rows) other[next[digit(n)]++] = n;
    rows.swap(other);
  }
  Segments segments{num_segments, {}, {}, {}};
  const int64_t sorted = rows.size();
  for (int64_t i = 0; i < sorted; ++i) {
    if (i == 0 || indices[rows[i]] != indices[rows[i - 1]]) segments.append(indices[rows[i]], i);
  }
  segments.begin.push_back(sorted);
  segments.rows = std::move(rows);
  return segments;
}

// Sorts the rows by segment. Rows with a negative index are left out.
inline Segments sort_rows(const int64_t* indices, int64_t count, int64_t num_segments,
                          const ThreadPool& pool) {
  return num_segments > 2 * count ? sort_by_digits(indices, count, num_segments)
                                  : sort_by_counting(indices, count, num_segments, pool);
}

// Calls visit(i, sum) for every segment that has rows, with their sum in row order, double [D], and
// visit_gap(first, last) for the segments between. The elements of a row are contiguous. The parts
// for the threads have equal numbers of rows and segments.
template <class In, class Visit, class VisitGap>
void visit_sums(const Segments& segments, const Rows<const In>& src, const ThreadPool& pool,
                Visit visit, VisitGap visit_gap) {
  const Engine<In>& engine = instruction_set().engine<In>();
  const std::vector<int64_t>&ids = segments.ids, &begin = segments.begin;
  const int64_t num_segments = segments.num_segments;
  const int64_t num_rows = segments.rows.size();
  constexpr int64_t kElementsOfPart = 1 << 14;  // from this many on, waking a thread pays
  const int64_t elements = (num_rows + num_segments) * src.dim;
  const int64_t parts =
      std::clamp<int64_t>(elements / kElementsOfPart, 1, std::min(pool.num_threads, num_segments));
  // Returns the place in ids of the first segment that is not below k.
  const auto place_of = [&](int64_t k) {
    return std::lower_bound(ids.begin(), ids.end(), k) - ids.begin();
  };
  const auto first_segment = [&](int64_t part) {
    const int64_t target = part_begin(num_rows + num_segments, parts, part);
    int64_t low = 0, high = num_segments;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (begin[place_of(middle)] + middle < target) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  pool.run(parts, [&](int64_t part) {
    std::vector<double> sum((src.dim + 7) / 8 * 8);
    const int64_t last = part + 1 == parts ? num_segments : first_segment(part + 1);
    int64_t next = first_segment(part);
    for (int64_t i = place_of(next); i < int64_t(ids.size()) && ids[i] < last; ++i) {
      visit_gap(next, ids[i]);
      engine.sum_rows(src, segments.rows.data() + begin[i], segments.size(i),
                      num_rows - begin[i + 1], sum.data());
      visit(i, sum.data());
      next = ids[i] + 1;
    }
    visit_gap(next, last);
  });
}

}  // namespace vqvae_fast
