#include "residual_backward.h"

#include <algorithm>
#include <vector>

#include "../dispatch.h"

namespace vqvae_fast {

template <class In>
void residual_backward(const ResidualStages<In>& stages, const Rows<const In>& grad,
                       const Rows<const In>& z, const int64_t* indices, In* out,
                       const ThreadPool& pool) {
  constexpr int64_t kElementsOfPart = 1 << 12;
  const Engine<In>& engine = instruction_set().engine<In>();
  const int64_t work = z.count * stages.dim * stages.count;
  const int64_t parts = std::clamp<int64_t>(
      work / kElementsOfPart, 1, std::max<int64_t>(std::min(pool.num_threads, z.count), 1));
  const int64_t padded = (stages.dim + 7) / 8 * 8;
  pool.run(parts, [&](int64_t part) {
    std::vector<In> residual(padded);
    std::vector<double> sum(padded);
    const int64_t end = part_begin(z.count, parts, part + 1);
    for (int64_t n = part_begin(z.count, parts, part); n < end; ++n) {
      std::fill(sum.begin(), sum.end(), 0.0);
      engine.residual_gradient(stages, grad.row(n), z.row(n), indices + n * stages.count,
                               residual.data(), sum.data());
      for (int64_t d = 0; d < stages.dim; ++d) out[n * stages.dim + d] = In(sum[d]);
    }
  });
}

#define VQVAE_FAST_INSTANTIATE(In)                                                  \
  template void residual_backward(const ResidualStages<In>&, const Rows<const In>&, \
                                  const Rows<const In>&, const int64_t*, In*, const ThreadPool&)
VQVAE_FAST_INSTANTIATE(float);
VQVAE_FAST_INSTANTIATE(double);

}  // namespace vqvae_fast
