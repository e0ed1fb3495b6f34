// Reads and copies memory with vectors of VECTOR_BYTES; a step goes over the memory once.

#include <cstdint>

#ifdef TARGET
#define FOR_TARGET __attribute__((target(TARGET)))
#else
#define FOR_TARGET
#endif

namespace {

typedef std::int64_t Vector __attribute__((vector_size(VECTOR_BYTES)));

// A block of this many vectors is handled at once: enough independent sums for the loop to wait
// only for memory. The memory is a multiple of two such blocks.
constexpr int kBlock = 8;

}  // namespace

extern "C" {

// Touches the pages, so that the kernel places them near this thread.
FOR_TARGET void fill(std::int64_t steps, char* memory, std::int64_t bytes) {
  auto* vectors = reinterpret_cast<Vector*>(memory);
  const std::int64_t count = bytes / VECTOR_BYTES;
  for (std::int64_t s = 0; s < steps; ++s)
    for (std::int64_t i = 0; i < count; ++i) vectors[i] = Vector{} + 1;
}

FOR_TARGET void read(std::int64_t steps, char* memory, std::int64_t bytes) {
  const auto* vectors = reinterpret_cast<const Vector*>(memory);
  const std::int64_t count = bytes / VECTOR_BYTES;
  Vector sums[kBlock] = {};
  for (std::int64_t s = 0; s < steps; ++s) {
    for (std::int64_t i = 0; i < count; i += kBlock) {
#pragma GCC unroll 8
      for (int j = 0; j < kBlock; ++j) sums[j] += vectors[i + j];
    }
    __asm__ volatile("" ::: "memory");  // each step reads anew
  }
  Vector total = {};
  for (const Vector& sum : sums) total += sum;
  __asm__ volatile("" ::"m"(total));
}

// Copies the first half of the memory to the second.
FOR_TARGET void copy(std::int64_t steps, char* memory, std::int64_t bytes) {
  const std::int64_t count = bytes / 2 / VECTOR_BYTES;
  const auto* from = reinterpret_cast<const Vector*>(memory);
  auto* to = reinterpret_cast<Vector*>(memory) + count;
  for (std::int64_t s = 0; s < steps; ++s) {
    for (std::int64_t i = 0; i < count; i += kBlock) {
#pragma GCC unroll 8
      for (int j = 0; j < kBlock; ++j) to[i + j] = from[i + j];
      // Without this the compiler would call memcpy, whose stores may bypass the caches.
      __asm__ volatile("" ::: "memory");
    }
  }
}
}
