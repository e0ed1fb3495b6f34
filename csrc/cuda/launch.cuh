// Launches kernels on one stream. After the first error nothing more is launched, so that the
// caller asks for the error once, at the end.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace vqvae_fast {

class Launcher {
 public:
  explicit Launcher(cudaStream_t stream) : stream_(stream) {}

  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), dim3 grid, int threads, Arguments... arguments) {
    if (error_ != cudaSuccess) return;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.stream = stream_;
    error_ = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  }

  // Calls run(), which enqueues other work on the stream and returns its error. Does nothing after
  // an error.
  template <class Run>
  void enqueue(Run run) {
    if (error_ == cudaSuccess) error_ = run(stream_);
  }

  cudaError_t error() const { return error_; }

 private:
  cudaStream_t stream_;
  cudaError_t error_ = cudaSuccess;
};

// Parts of device memory begin at multiples of this many bytes.
constexpr int64_t kDeviceAlignment = 256;

constexpr int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Returns the blocks for `count` items at `per_block` each. A kernel that may have more items than
// the grid steps by the grid.
inline dim3 blocks_for(int64_t count, int64_t per_block) {
  const int64_t blocks = ceil_divide(count, per_block);
  return dim3(static_cast<unsigned>(blocks < INT32_MAX ? (blocks > 0 ? blocks : 1) : INT32_MAX));
}

}  // namespace vqvae_fast
