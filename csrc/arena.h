// Parts of one allocation. Laid out from a null pointer an arena only counts, so that the code that
// lays memory out also says how much it needs. Everything here is in an unnamed namespace: the file
// is compiled under several instruction sets, and no function of one may serve another.
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
