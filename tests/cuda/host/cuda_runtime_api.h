// Stands in for CUDA's header of this name: types, and memory set at once.
#pragma once

#include <stddef.h>
#include <string.h>

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream = nullptr;
};

inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  if (bytes > 0) memset(at, value, bytes);
  return cudaSuccess;
}
