// Stands in for CUB's header of this name: a stable sort of pairs.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "cuda_runtime_api.h"

namespace cub {

struct DeviceRadixSort {
  template <class Key, class Value, class Count>
  static cudaError_t SortPairs(void* workspace, size_t& bytes, const Key* keys, Key* sorted_keys,
                               const Value* values, Value* sorted_values, Count count, int, int,
                               cudaStream_t) {
    if (workspace == nullptr) {
      bytes = 1;
      return cudaSuccess;
    }
    std::vector<Count> order(static_cast<size_t>(count));
    std::iota(order.begin(), order.end(), Count{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](Count a, Count b) { return keys[a] < keys[b]; });
    for (Count i = 0; i < count; ++i) {
      sorted_keys[i] = keys[order[static_cast<size_t>(i)]];
      sorted_values[i] = values[order[static_cast<size_t>(i)]];
    }
    return cudaSuccess;
  }
};

}  // namespace cub
