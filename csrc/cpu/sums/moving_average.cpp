#include "moving_average.h"

#include <algorithm>
#include <limits>

#include "segments.h"

namespace vqvae_fast {
namespace {

// Lerp moves `old` by `share` of the way to `now`, with the roundings of torch's lerp.
template <class T>
struct Lerp {
  T share;

  T operator()(T old, T now) const {
    return share < T(0.5) ? old + share * (now - old) : now - (now - old) * (1 - share);
  }
};

}  // namespace

template <class In>
bool moving_average(const Rows<const In>& src, const int64_t* indices, int64_t num_codes,
                    double decay, double eps, Compute<In>* sizes, Compute<In>* averages,
                    Compute<In>* codes, const ThreadPool& pool) {
  using T = Compute<In>;
  if (!all_below(indices, src.count, num_codes)) return false;
  const Segments segments = sort_rows(indices, src.count, num_codes, pool);
  const Lerp<T> lerp{T(1 - decay)};
  double total = 0;
  for (int64_t k = 0, i = 0; k < num_codes; ++k) {
    const bool chosen = i < int64_t(segments.ids.size()) && segments.ids[i] == k;
    sizes[k] = lerp(sizes[k], chosen ? T(segments.size(i++)) : T(0));
    total += double(sizes[k]);
  }
  const double smoothing = total / (total + double(num_codes) * eps);
  constexpr double kTiny = std::numeric_limits<T>::min();  // keeps a divisor above zero
  // sum(d) returns element d of the sum of the code's rows.
  const auto move = [&](int64_t k, auto sum) {
    const T size = T(std::max((double(sizes[k]) + eps) * smoothing, kTiny));
    T* average = averages + k * src.dim;
    T* code = codes + k * src.dim;
    for (int64_t d = 0; d < src.dim; ++d) {
      average[d] = lerp(average[d], sum(d));
      code[d] = average[d] / size;
    }
  };
  visit_sums(
      segments, src, pool,
      [&](int64_t i, const double* sum) {
        move(segments.ids[i], [&](int64_t d) { return T(sum[d]); });
      },
      [&](int64_t first, int64_t last) {
        for (int64_t k = first; k < last; ++k) move(k, [](int64_t) { return T(0); });
      });
  return true;
}

#define VQVAE_FAST_INSTANTIATE(In)                                                             \
  template bool moving_average(const Rows<const In>&, const int64_t*, int64_t, double, double, \
                               Compute<In>*, Compute<In>*, Compute<In>*, const ThreadPool&)
VQVAE_FAST_INSTANTIATE(float);
VQVAE_FAST_INSTANTIATE(double);
VQVAE_FAST_INSTANTIATE(BFloat16);
VQVAE_FAST_INSTANTIATE(Half);

}  // namespace vqvae_fast
