// What fibres and real threads have in common: where a thread is, and what a warp exchanges.
#pragma once

#include <string.h>

#include "cuda_runtime_api.h"

namespace host_cuda {

constexpr int kMaxThreads = 256;
constexpr int kLanes = 32;

inline bool& blocks_backwards() {
  static bool backwards = false;
  return backwards;
}

// What each lane of a warp shows the others.
struct Lanes {
  alignas(16) unsigned char slots[kLanes][16];

  template <class T>
  T at(int lane) const {
    T value;
    memcpy(&value, slots[lane], sizeof value);
    return value;
  }
};
inline Lanes& lanes_of(int warp) {
  static Lanes lanes[kMaxThreads / kLanes];
  return lanes[warp];
}

}  // namespace host_cuda
