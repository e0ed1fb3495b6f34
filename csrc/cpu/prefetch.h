// Asks for rows before they are read, where no hardware prefetcher could find them.
#pragma once

#include <stdint.h>

#include "../rows.h"

namespace vqvae_fast {
namespace {

template <class In>
inline void prefetch_row(const In* row, int64_t dim) {
#if defined(__GNUC__)
  for (int64_t d = 0; d < dim; d += 64 / int64_t{sizeof(In)}) __builtin_prefetch(row + d);
#endif
}

// Asks for the cache line that lies so many bytes behind p. A hardware prefetcher stops at every
// page; kBytesAhead is far enough ahead of a read in order that the line has come from memory.
constexpr int64_t kBytesAhead = 8192;
template <class T>
VQVAE_FAST_INLINE void prefetch_ahead(const T* p) {
#if defined(__GNUC__)
  __builtin_prefetch(reinterpret_cast<const char*>(p) + kBytesAhead);
#endif
}

}  // namespace
}  // namespace vqvae_fast
