// Stands in for CUDA's header of this name: the kernels' own source then compiles with a C++
// compiler, and the CPU runs it, for correctness. A block's threads are fibres, or with
// HOST_CUDA_THREADS real threads, which the thread sanitizer watches. Blocks run one after the
// other, so what is shared in a block may be static. What is here is what the kernels use.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "cuda_runtime_api.h"

#ifdef HOST_CUDA_THREADS
#include "threads.h"
#else
#include "fibres.h"
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))

#define threadIdx (host_cuda::self().thread)
inline dim3 blockIdx, blockDim, gridDim;

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};

inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }  // compiled without contraction
inline double __dmul_rn(double a, double b) { return a * b; }
inline int __ffs(int bits) { return __builtin_ffs(bits); }

inline void __syncthreads() { host_cuda::wait_for_block(); }
inline void __syncwarp() { host_cuda::wait_for_warp(); }

template <class T>
T __shfl_sync(unsigned, T value, int from) {
  return host_cuda::exchange(value, [=](const auto& lanes) { return lanes.template at<T>(from); });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int across) {
  return __shfl_sync(mask, value, host_cuda::lane() ^ across);
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  return host_cuda::exchange(vote, [](const auto& lanes) {
    unsigned votes = 0;
    for (int l = 0; l < 32; ++l) votes |= static_cast<unsigned>(lanes.template at<bool>(l)) << l;
    return votes;
  });
}
inline bool __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }

inline int atomicOr(int* at, int value) { return __atomic_fetch_or(at, value, __ATOMIC_RELAXED); }
inline unsigned long long atomicAdd(unsigned long long* at, unsigned long long value) {
  return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}
inline unsigned atomicMax(unsigned* at, unsigned value) {
  unsigned seen = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (seen < value && !__atomic_compare_exchange_n(at, &seen, value, false, __ATOMIC_RELAXED,
                                                      __ATOMIC_RELAXED)) {
  }
  return seen;
}

// Launches run at once. Blocks may run in either order: no result may depend on it.
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  const auto run = [&] { kernel(arguments...); };
  blockDim = config->blockDim;
  gridDim = config->gridDim;
  const int64_t blocks = int64_t{config->gridDim.x} * config->gridDim.y;
  const host_cuda::Threads threads(static_cast<int>(config->blockDim.x), run);
  threads.run_blocks(blocks, [&](int64_t i) {
    const int64_t at = host_cuda::blocks_backwards() ? blocks - 1 - i : i;
    blockIdx = dim3(static_cast<unsigned>(at % config->gridDim.x),
                    static_cast<unsigned>(at / config->gridDim.x));
  });
  return cudaSuccess;
}
