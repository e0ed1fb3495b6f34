// A Buffer owns memory that starts on a cache line.
#pragma once

#include <stdint.h>

#include <memory>
#include <new>

namespace vqvae_fast {

struct FreeAligned {
  void operator()(void* p) const { ::operator delete[](p, std::align_val_t{64}); }
};
using Buffer = std::unique_ptr<void, FreeAligned>;

inline Buffer allocate(int64_t bytes) {
  return Buffer(::operator new[](static_cast<size_t>(bytes), std::align_val_t{64}));
}

}  // namespace vqvae_fast
