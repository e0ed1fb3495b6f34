#include "distinct.h"

#include <string.h>

#include <algorithm>

#include "../../elements.h"

namespace vqvae_fast {
namespace {

// Another thread is woken for every so many elements to hash.
constexpr int64_t kHashWork = 1 << 15;

// Reads a code as words of 8 bytes and makes every zero positive.
template <class In>
class Words {
 public:
  explicit Words(const Codes<In>& codes)
      : codes_(codes), words_((codes.dim * sizeof(In) + sizeof(uint64_t) - 1) / sizeof(uint64_t)) {}

  const std::vector<uint64_t>& read(int64_t k) {
    const In* code = codes_.row(k);
    if (codes_.element_stride == 1) {
      memcpy(words_.data(), code, codes_.dim * sizeof(In));
    } else {
      char* bytes = reinterpret_cast<char*>(words_.data());
      for (int64_t d = 0; d < codes_.dim; ++d) {
        memcpy(bytes + d * sizeof(In), code + d * codes_.element_stride, sizeof(In));
      }
    }
    for (uint64_t& word : words_) {
      // The sum reaches an element's sign bit unless its magnitude is zero, and never goes beyond.
      const uint64_t magnitudes = word & kAllButSigns;
      word &= magnitudes | ((magnitudes + kAllButSigns) & ~kAllButSigns);
    }
    return words_;
  }

 private:
  static constexpr uint64_t kAllButSigns = sizeof(In) == 8   ? 0x7fffffffffffffffu
                                           : sizeof(In) == 4 ? 0x7fffffff7fffffffu
                                                             : 0x7fff7fff7fff7fffu;
  Codes<In> codes_;
  std::vector<uint64_t> words_;
};

// The shift carries high bits to the low ones, so that codes that differ in signs and exponents
// alone get different hashes.
uint64_t mix(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
  return hash ^ hash >> 32;
}

uint64_t hash_of(const std::vector<uint64_t>& words) {
  constexpr size_t kChains = 4;  // in parallel, because each waits for its own last step
  uint64_t hash[kChains] = {1, 2, 3, 4};
  size_t w = 0;
  for (; w + kChains <= words.size(); w += kChains) {
    for (size_t i = 0; i < kChains; ++i) hash[i] = mix(hash[i], words[w + i]);
  }
  for (; w < words.size(); ++w) hash[0] = mix(hash[0], words[w]);
  return mix(mix(mix(hash[0], hash[1]), hash[2]), hash[3]);
}

}  // namespace

template <class In>
std::vector<int64_t> distinct_codes(const Codes<In>& codes, const ThreadPool& pool,
                                    int64_t most_copies) {
  std::vector<uint64_t> hashes(codes.count);
  const int64_t parts = std::clamp<int64_t>(codes.count * codes.dim / kHashWork, 1,
                                            std::min(pool.num_threads, codes.count));
  pool.run(parts, [&](int64_t part) {
    Words<In> words(codes);
    const int64_t last = part_begin(codes.count, parts, part + 1);
    for (int64_t k = part_begin(codes.count, parts, part); k < last; ++k) {
      hashes[k] = hash_of(words.read(k));
    }
  });

  uint64_t slots = 4;  // a power of two, at most half of them taken
  while (slots < 2 * uint64_t(codes.count)) slots *= 2;
  constexpr int64_t kFree = -1;
  std::vector<int64_t> table(slots, kFree);  // codes, from the slot of their hash on
  std::vector<int64_t> copies(most_copies > 1 ? slots : 0);  // found of the code of each slot
  std::vector<int64_t> distinct;
  Words<In> words(codes), earlier_words(codes);
  for (int64_t k = 0; k < codes.count; ++k) {
    const auto equals = [&](int64_t earlier) {
      return hashes[earlier] == hashes[k] && earlier_words.read(earlier) == words.read(k);
    };
    uint64_t slot = hashes[k] & (slots - 1);
    while (table[slot] != kFree && !equals(table[slot])) slot = (slot + 1) & (slots - 1);
    if (table[slot] == kFree) {
      table[slot] = k;
    } else if (most_copies == 1 || ++copies[slot] >= most_copies) {
      continue;
    }
    distinct.push_back(k);
  }
  return distinct;
}

#define VQVAE_FAST_INSTANTIATE(In) \
  template std::vector<int64_t> distinct_codes(const Codes<In>&, const ThreadPool&, int64_t)
VQVAE_FAST_INSTANTIATE(float);
VQVAE_FAST_INSTANTIATE(double);
VQVAE_FAST_INSTANTIATE(BFloat16);
VQVAE_FAST_INSTANTIATE(Half);

}  // namespace vqvae_fast
