// Computes deterministic segment sums and the layer's backward pass on a GPU, given raw pointers
// and a stream. No function waits for the device, so CUDA graphs may capture them.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "../rows.h"

namespace vqvae_fast {

// Returns the bytes of device memory that the sum of `count` rows needs: O(N), and D float64 for
// every 32 rows.
cudaError_t segment_sum_workspace(int64_t count, int64_t dim, int64_t num_segments, int64_t* bytes);

// Overwrites sums: [num_segments][D] and counts: [num_segments]; sums in float64. Rows with a
// negative index belong to no segment. An index of num_segments or more is never dereferenced: it
// makes all sums and counts NaN, because an error would have to wait for the device. num_segments
// is below 2^32 - 1.
template <class In>
cudaError_t segment_sum(const Rows<const In>& src, const int64_t* indices, int64_t num_segments,
                        Compute<In>* sums, Compute<In>* counts, void* workspace,
                        cudaStream_t stream);

// Runs the layer's backward pass for one book, with everything on the device.
//   grad_z = grad_quantized + c * commitment_weight * (z - e),       c = 2 grad_loss / elements
//   grad_codebook[k] = -c * codebook_weight * (sum of z - e over the rows that chose code k)
// grad_codebook: [K][D], overwritten. elements: how many elements the loss is the mean of. The
// workspace has the size that segment_sum_workspace returns. An index that is no code is never
// dereferenced: its row is in no sum.
template <class In>
struct QuantizeBackward {
  Rows<const In> grad_quantized;
  const Compute<In>* grad_loss;
  Rows<const In> z;
  Codes<In> codes;
  const int64_t* indices;
  double commitment_weight;
  double codebook_weight;
  double elements;
  Rows<In> grad_z;
  In* grad_codebook;
};
template <class In>
cudaError_t quantize_backward(const QuantizeBackward<In>& pass, void* workspace,
                              cudaStream_t stream);

}  // namespace vqvae_fast
