// DLPack's way to read a tensor without a Python call: a table of functions that the tensor's class
// offers (https://dmlc.github.io/dlpack/latest/c_api.html). Only what is read here has a type.
// torch has the whole header, but not for extensions that keep to its stable ABI.
#pragma once

#include <cstdint>

namespace vqvae_fast::dlpack {

constexpr const char* kAttribute = "__dlpack_c_exchange_api__";
constexpr const char* kCapsule = "dlpack_exchange_api";
constexpr uint32_t kMajorVersion = 1;

// DLTensor
struct Layout {
  void* data;
  int32_t device_type, device_index;
  int32_t dims;
  uint8_t dtype_code, dtype_bits;
  uint16_t dtype_lanes;
  int64_t* sizes;
  int64_t* strides;
  uint64_t byte_offset;
};

// DLPackExchangeAPI
struct Api {
  uint32_t major_version, minor_version;
  void* previous;
  void* others[3];
  // Reads the layout of a Python tensor, which lends it. Returns -1 with a Python error if it
  // cannot.
  int (*read_layout)(void* tensor, Layout* layout);
  void* stream;
};

}  // namespace vqvae_fast::dlpack
