#include "segment_sum.cuh"

namespace vqvae_fast {

cudaError_t segment_sum_workspace(int64_t count, int64_t dim, int64_t num_segments,
                                  int64_t* bytes) {
  const SumPlan plan = plan_sum(count, dim, num_segments, nullptr);
  *bytes = plan.bytes;
  return plan.error;
}

template <class In>
cudaError_t segment_sum(const Rows<const In>& src, const int64_t* indices, int64_t num_segments,
                        Compute<In>* sums, Compute<In>* counts, void* workspace,
                        cudaStream_t stream) {
  return run_segment_sum<In>(src, indices, num_segments, sums, counts, workspace, stream);
}

template <class In>
cudaError_t quantize_backward(const QuantizeBackward<In>& pass, void* workspace,
                              cudaStream_t stream) {
  return run_backward<In>(pass, workspace, stream);
}

#define VQVAE_FAST_INSTANTIATE(In)                                                               \
  template cudaError_t segment_sum(const Rows<const In>&, const int64_t*, int64_t, Compute<In>*, \
                                   Compute<In>*, void*, cudaStream_t);                           \
  template cudaError_t quantize_backward(const QuantizeBackward<In>&, void*, cudaStream_t)
VQVAE_FAST_INSTANTIATE(float);
VQVAE_FAST_INSTANTIATE(double);
VQVAE_FAST_INSTANTIATE(BFloat16);
VQVAE_FAST_INSTANTIATE(Half);

}  // namespace vqvae_fast
