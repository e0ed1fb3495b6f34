// Parts of one allocation. Laid out from a null pointer it only counts, so that the code that lays
// a workspace out also says how large it is.
#pragma once

#include <stdint.h>

namespace vqvae_fast {

class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    constexpr int64_t kAlignment = 256;
    T* part = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    const int64_t size = count * static_cast<int64_t>(sizeof(T));
    bytes_ += (size + kAlignment - 1) / kAlignment * kAlignment;
    return part;
  }

  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

}  // namespace vqvae_fast
