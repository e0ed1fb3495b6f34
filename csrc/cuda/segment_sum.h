// Deterministic segment sums and the layer's backward pass on a GPU: raw pointers and a stream.
// Nothing here waits for the device, so that CUDA graphs may capture it.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "../rows.h"

namespace vqvae_fast {

// Bytes of device memory that the sum of `count` rows needs: O(N), and D float64 for every 32 rows.
cudaError_t segment_sum_workspace(int64_t count, int64_t dim, int64_t num_segments, int64_t* bytes);

// sums: [num_segments][D] and counts: [num_segments], overwritten; summed in float64. Rows with a
// negative index belong to no segment. An index of num_segments or more is never followed: it
// makes all sums and counts NaN, because raising an error would mean waiting for the device.
// num_segments is below 2^32 - 1.
template <class In>
cudaError_t segment_sum(const Rows<const In>& src, const int64_t* indices, int64_t num_segments,
                        Compute<In>* sums, Compute<In>* counts, void* workspace,
                        cudaStream_t stream);

// The layer's backward pass for one book; everything on the device.
//   grad_z = grad_quantized + c * commitment_weight * (z - e),       c = 2 grad_loss / elements
//   grad_codebook[k] = -c * codebook_weight * (sum of z - e over the rows that chose code k)
// grad_codebook: [K][D], overwritten. elements: how many the mean of the loss ran over. The
// workspace is segment_sum_workspace's. An index that is no code is never followed: its row is in
// no sum.
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
