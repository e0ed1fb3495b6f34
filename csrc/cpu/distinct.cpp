#include "distinct.h"

#include <string.h>

#include <algorithm>

#include "../elements.h"

namespace vqvae_fast {
namespace {

// Elements of a codebook that a thread must have to hash before waking it pays.
constexpr int64_t kHashWork = 1 << 15;

// A code as words of 8 bytes, in which every zero is positive.
template <class In>
class Words {
 public:
  Words(const Codes<In>& codes, int64_t k)
      : code_(codes.row(k)), dim_(codes.dim), stride_(codes.element_stride) {}

  int64_t count() const { return (dim_ + kElements - 1) / kElements; }

  uint64_t operator[](int64_t w) const {
    uint64_t word = 0;
    const int64_t first = w * kElements, elements = std::min(dim_ - first, kElements);
    if (stride_ == 1 && elements == kElements) {
      memcpy(&word, code_ + first, sizeof word);
    } else {
      char* bytes = reinterpret_cast<char*>(&word);
      for (int64_t i = 0; i < elements; ++i) {
        memcpy(bytes + i * sizeof(In), code_ + (first + i) * stride_, sizeof(In));
      }
    }
    // The sum reaches an element's sign bit unless its magnitude is zero, and never goes beyond.
    const uint64_t magnitudes = word & kAllButSigns;
    const uint64_t signs_that_count = (magnitudes + kAllButSigns) & ~kAllButSigns;
    return magnitudes | (word & signs_that_count);
  }

 private:
  static constexpr int64_t kElements = sizeof(uint64_t) / sizeof(In);
  static constexpr uint64_t kAllButSigns = sizeof(In) == 8   ? 0x7fffffffffffffffu
                                           : sizeof(In) == 4 ? 0x7fffffff7fffffffu
                                                             : 0x7fff7fff7fff7fffu;
  const In* code_;
  int64_t dim_;
  int64_t stride_;
};

template <class In>
bool equal(const Words<In>& a, const Words<In>& b) {
  uint64_t difference = 0;
  for (int64_t w = 0; w < a.count(); ++w) difference |= a[w] ^ b[w];
  return difference == 0;
}

// High bits reach the low ones by the shift, so that signs and exponents alone tell codes apart.
uint64_t mix(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
  return hash ^ hash >> 32;
}

template <class In>
uint64_t hash_of(const Words<In>& words) {
  constexpr int kChains = 4;  // side by side, because each is a chain of latencies
  uint64_t hash[kChains] = {1, 2, 3, 4};
  int64_t w = 0;
  for (; w + kChains <= words.count(); w += kChains) {
    for (int i = 0; i < kChains; ++i) hash[i] = mix(hash[i], words[w + i]);
  }
  for (; w < words.count(); ++w) hash[0] = mix(hash[0], words[w]);
  return mix(mix(mix(hash[0], hash[1]), hash[2]), hash[3]);
}

}  // namespace

template <class In>
std::vector<int64_t> distinct_codes(const Codes<In>& codes, const ThreadPool& pool) {
  std::vector<uint64_t> hashes(codes.count);
  const int64_t parts = std::clamp<int64_t>(codes.count * codes.dim / kHashWork, 1,
                                            std::min(pool.num_threads, codes.count));
  pool.run(parts, [&](int64_t part) {
    const int64_t last = part_begin(codes.count, parts, part + 1);
    for (int64_t k = part_begin(codes.count, parts, part); k < last; ++k) {
      hashes[k] = hash_of(Words<In>(codes, k));
    }
  });

  uint64_t slots = 4;  // a power of two, at most half of them taken
  while (slots < 2 * uint64_t(codes.count)) slots *= 2;
  constexpr int64_t kFree = -1;
  std::vector<int64_t> table(slots, kFree);  // codes, from the slot of their hash on
  std::vector<int64_t> distinct;
  for (int64_t k = 0; k < codes.count; ++k) {
    const Words<In> code(codes, k);
    uint64_t slot = hashes[k] & (slots - 1);
    while (table[slot] != kFree &&
           !(hashes[table[slot]] == hashes[k] && equal(code, Words<In>(codes, table[slot])))) {
      slot = (slot + 1) & (slots - 1);
    }
    if (table[slot] != kFree) continue;
    table[slot] = k;
    distinct.push_back(k);
  }
  return distinct;
}

#define VQVAE_FAST_INSTANTIATE(In) \
  template std::vector<int64_t> distinct_codes(const Codes<In>&, const ThreadPool&)
VQVAE_FAST_INSTANTIATE(float);
VQVAE_FAST_INSTANTIATE(double);
VQVAE_FAST_INSTANTIATE(BFloat16);
VQVAE_FAST_INSTANTIATE(Half);

}  // namespace vqvae_fast
