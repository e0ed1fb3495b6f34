#include "search.cuh"

// This turns nvcc's list of the architectures that it compiles for into text.
#define VQVAE_FAST_TEXT(...) #__VA_ARGS__
#define VQVAE_FAST_EXPANDED_TEXT(...) VQVAE_FAST_TEXT(__VA_ARGS__)

namespace vqvae_fast {

const char* compiled_for() { return VQVAE_FAST_EXPANDED_TEXT(__CUDA_ARCH_LIST__); }

template <class In>
int64_t search_workspace(const Rows<const In>& z, const Codes<In>& codes, int processors) {
  return plan_search<In, SearchTile>(z, codes, processors, nullptr).bytes;
}

template <class In>
cudaError_t search_codebook(const Rows<const In>& z, const Codes<In>& codes, int64_t* indices,
                            Compute<In>* distances, const Rows<In>& quantized, void* workspace,
                            int processors, cudaStream_t stream) {
  return run_search<In, SearchTile>(z, codes, indices, distances, quantized, workspace, processors,
                                    stream);
}

#define VQVAE_FAST_INSTANTIATE(In)                                                        \
  template int64_t search_workspace(const Rows<const In>&, const Codes<In>&, int);        \
  template cudaError_t search_codebook(const Rows<const In>&, const Codes<In>&, int64_t*, \
                                       Compute<In>*, const Rows<In>&, void*, int, cudaStream_t)
VQVAE_FAST_INSTANTIATE(float);
VQVAE_FAST_INSTANTIATE(double);
VQVAE_FAST_INSTANTIATE(BFloat16);
VQVAE_FAST_INSTANTIATE(Half);

}  // namespace vqvae_fast
