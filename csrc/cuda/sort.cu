#include <cub/device/device_radix_sort.cuh>

#include "sort.h"

namespace vqvae_fast {

cudaError_t sort_by_segment(void* workspace, size_t* bytes, const uint32_t* segments,
                            uint32_t* sorted_segments, const int64_t* rows, int64_t* sorted_rows,
                            int64_t count, int bits, cudaStream_t stream) {
  return cub::DeviceRadixSort::SortPairs(workspace, *bytes, segments, sorted_segments, rows,
                                         sorted_rows, count, 0, bits, stream);
}

}  // namespace vqvae_fast
