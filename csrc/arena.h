// An arena divides one allocation into parts. Given a null pointer it only counts bytes, so the
// code that lays memory out also computes how much it needs. Everything is in an unnamed namespace:
// several instruction sets compile this file, and the linker must keep their functions apart.
#pragma once

#include <stdint.h>

namespace vqvae_fast {
namespace {

class Arena {
 public:
  // Every part begins at a multiple of `alignment` bytes from the base.
  Arena(void* base, int64_t alignment) : base_(static_cast<char*>(base)), alignment_(alignment) {}

  template <class T>
  T* take(int64_t count) {
    T* part = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    const int64_t size = count * static_cast<int64_t>(sizeof(T));
    bytes_ += (size + alignment_ - 1) / alignment_ * alignment_;
    return part;
  }

  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t alignment_;
  int64_t bytes_ = 0;
};

}  // namespace
}  // namespace vqvae_fast
