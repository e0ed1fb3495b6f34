// This file defines the tensors that all kernels take, on the CPU and on the GPU, as raw pointers
// and strides. It includes no torch headers.
#pragma once

#include <stdint.h>

// The functions of this file are always inlined. The linker may merge functions of the same name,
// and could take one from the file of an instruction set that the machine lacks. nvcc compiles them
// for the device too.
#if defined(__CUDACC__)
#define VQVAE_FAST_INLINE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define VQVAE_FAST_INLINE __attribute__((always_inline)) inline
#else
#define VQVAE_FAST_INLINE inline
#endif

namespace vqvae_fast {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// The arithmetic that an input type is searched in. 16-bit inputs are exact in float.
template <class In>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class In>
using Compute = typename ComputeType<In>::type;

// Rows describes rows of D elements in memory: row n lies at (n / inner) * outer_stride + (n %
// inner) * row_stride. Two levels suffice to read [B, D, H, W] feature maps in place. Strides count
// elements.
template <class In>
struct Rows {
  In* data;
  int64_t count;
  int64_t dim;
  int64_t inner;
  int64_t outer_stride;
  int64_t row_stride;
  int64_t element_stride;

  VQVAE_FAST_INLINE In* row(int64_t n) const {
    const int64_t outer = inner == count ? 0 : n / inner;  // a division is slow
    return data + outer * outer_stride + (n - outer * inner) * row_stride;
  }
};

// A codebook in memory.
template <class In>
struct Codes {
  const In* data;
  int64_t count;
  int64_t dim;
  int64_t row_stride;
  int64_t element_stride;

  VQVAE_FAST_INLINE const In* row(int64_t k) const { return data + k * row_stride; }
};

// An affine map leads from `dim` elements x to `columns` elements: x * matrix + start. Both must be
// readable up to the next multiple of kMapColumns columns.
constexpr int64_t kMapColumns = 16;
template <class T>
struct Affine {
  const T* matrix;  // [dim][stride]
  const T* start;   // [columns]
  int64_t dim, columns, stride;
};

}  // namespace vqvae_fast
