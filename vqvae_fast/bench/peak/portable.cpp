// Runs float32 multiply-adds as the compiler writes them for any processor of this kind.

#include <cstdint>

namespace {
constexpr int kSums = 48;
}

extern "C" {

int loop_is_supported() { return 1; }

std::int64_t loop_sums() { return kSums; }

void loop(std::int64_t steps, char*, std::int64_t) {
  float sums[kSums], factor = 0.999f, term = 0.001f;
  __asm__ volatile("" : "+m"(factor), "+m"(term));  // keeps the compiler from computing the result
  for (int i = 0; i < kSums; ++i) sums[i] = term * static_cast<float>(i);
  for (std::int64_t s = 0; s < steps; ++s)
    for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * factor + term;
  float total = 0;
  for (float sum : sums) total += sum;
  __asm__ volatile("" ::"m"(total));
}
}
