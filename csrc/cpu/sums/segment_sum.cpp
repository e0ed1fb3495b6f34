#include "segment_sum.h"

#include <algorithm>
#include <vector>

#include "../../elements.h"
#include "segments.h"

namespace vqvae_fast {
namespace {

// Sums rows whose elements are contiguous, segment by segment.
template <class In>
void sum_by_segment(const Rows<const In>& src, const int64_t* indices, int64_t num_segments,
                    Compute<In>* sums, Compute<In>* counts, const ThreadPool& pool) {
  using T = Compute<In>;
  const Segments segments = sort_rows(indices, src.count, num_segments, pool);
  visit_sums(
      segments, src, pool,
      [&](int64_t i, const double* sum) {
        const int64_t k = segments.ids[i];
        counts[k] = T(segments.size(i));
        for (int64_t d = 0; d < src.dim; ++d) sums[k * src.dim + d] = T(sum[d]);
      },
      [](int64_t, int64_t) {});
}

// Sums feature maps, whose rows are not contiguous, dimension by dimension, so that each is read in
// order.
template <class In>
void sum_by_dimension(const Rows<const In>& src, const int64_t* indices, int64_t num_segments,
                      Compute<In>* sums, Compute<In>* counts, const ThreadPool& pool) {
  using T = Compute<In>;
  constexpr int64_t kElementsOfPart = 1 << 14;  // from this many on, waking a thread pays
  const int64_t elements = (src.count + num_segments) * src.dim;
  const int64_t parts =
      std::clamp<int64_t>(elements / kElementsOfPart, 1, std::min(pool.num_threads, src.dim));
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
  if (!all_below(indices, src.count, num_segments)) return false;
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
