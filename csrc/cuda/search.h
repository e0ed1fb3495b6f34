// Searches on a GPU, given raw pointers and a stream. No function waits for the device, so CUDA
// graphs may capture them. docs/exactness.md says why it is exact.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "../rows.h"

namespace vqvae_fast {

// Returns the GPU architectures that the kernels were compiled for, as in "800,900".
const char* compiled_for();

// Returns the bytes of device memory that a search of these rows needs: O(N + K), and one packed
// copy of the codebook. processors: the number of the device's multiprocessors.
template <class In>
int64_t search_workspace(const Rows<const In>& z, const Codes<In>& codes, int processors);

// Writes indices[N], distances[N] and, if quantized.data is set, the chosen codes. All pointers are
// the device's; z.count and codes.count are at least 1.
template <class In>
cudaError_t search_codebook(const Rows<const In>& z, const Codes<In>& codes, int64_t* indices,
                            Compute<In>* distances, const Rows<In>& quantized, void* workspace,
                            int processors, cudaStream_t stream);

}  // namespace vqvae_fast
