// Sorts rows by segment with CUB, the only library that the kernels use.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

namespace vqvae_fast {

// Sorts (segment, row) pairs stably by the lowest `bits` bits of the segment. With a null workspace
// it only sets *bytes.
cudaError_t sort_by_segment(void* workspace, size_t* bytes, const uint32_t* segments,
                            uint32_t* sorted_segments, const int64_t* rows, int64_t* sorted_rows,
                            int64_t count, int bits, cudaStream_t stream);

}  // namespace vqvae_fast
