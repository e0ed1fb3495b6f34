// The float32 multiply-add peak of this machine, and its clock.
//
// Compiled by benchmarks/peak/__init__.py at run time and called through ctypes. Each kernel keeps
// enough independent accumulators in registers to cover latency x ports of today's cores
// (4-5 clocks x 2), touches no memory, and leaves a value that the compiler cannot drop.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

using Kernel = float (*)(std::int64_t, float, float);

constexpr int kPortableLanes = 48;

float fma_portable(std::int64_t steps, float b, float c) {
  float acc[kPortableLanes];
  for (int i = 0; i < kPortableLanes; ++i) acc[i] = c * static_cast<float>(i);
  for (std::int64_t s = 0; s < steps; ++s)
    for (int i = 0; i < kPortableLanes; ++i) acc[i] = acc[i] * b + c;
  float total = 0;
  for (float value : acc) total += value;
  return total;
}

#if defined(__x86_64__)
constexpr int kAvx2Vectors = 12;
constexpr int kAvx512Vectors = 24;

__attribute__((target("avx2,fma"))) float fma_avx2(std::int64_t steps, float b, float c) {
  const __m256 vb = _mm256_set1_ps(b), vc = _mm256_set1_ps(c);
  __m256 acc[kAvx2Vectors];
  for (int i = 0; i < kAvx2Vectors; ++i) acc[i] = _mm256_set1_ps(c * static_cast<float>(i));
  for (std::int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 12
    for (int i = 0; i < kAvx2Vectors; ++i) acc[i] = _mm256_fmadd_ps(acc[i], vb, vc);
  }
  __m256 total = acc[0];
  for (int i = 1; i < kAvx2Vectors; ++i) total = _mm256_add_ps(total, acc[i]);
  return _mm256_cvtss_f32(total);
}

__attribute__((target("avx512f"))) float fma_avx512(std::int64_t steps, float b, float c) {
  const __m512 vb = _mm512_set1_ps(b), vc = _mm512_set1_ps(c);
  __m512 acc[kAvx512Vectors];
  for (int i = 0; i < kAvx512Vectors; ++i) acc[i] = _mm512_set1_ps(c * static_cast<float>(i));
  for (std::int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 24
    for (int i = 0; i < kAvx512Vectors; ++i) acc[i] = _mm512_fmadd_ps(acc[i], vb, vc);
  }
  __m512 total = acc[0];
  for (int i = 1; i < kAvx512Vectors; ++i) total = _mm512_add_ps(total, acc[i]);
  return _mm512_cvtss_f32(total);
}
#endif

struct Choice {
  Kernel kernel;
  double flops_per_step;
};

Choice choose(int isa) {
#if defined(__x86_64__)
  if (isa == 2 && __builtin_cpu_supports("avx512f")) return {fma_avx512, 2.0 * 16 * kAvx512Vectors};
  if (isa == 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return {fma_avx2, 2.0 * 8 * kAvx2Vectors};
#endif
  if (isa == 0) return {fma_portable, 2.0 * kPortableLanes};
  return {nullptr, 0.0};
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

extern "C" {

// 1 when the machine runs instruction set isa (0 portable, 1 AVX2+FMA, 2 AVX-512), else 0.
int peak_supports(int isa) { return choose(isa).kernel != nullptr; }

// Operations in one step of one thread.
double peak_flops_per_step(int isa) { return choose(isa).flops_per_step; }

// FLOP/s of `threads` threads that run `steps` steps each; negative when isa is not supported.
// The clock runs from the moment that all threads are ready to the end of the last.
double peak_fma_flops(int isa, int threads, std::int64_t steps) {
  const Choice choice = choose(isa);
  if (!choice.kernel) return -1.0;
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<float> sink(static_cast<std::size_t>(threads) * 16);
  auto work = [&](int t) {
    ready.fetch_add(1);
    while (!go.load()) std::this_thread::yield();
    sink[static_cast<std::size_t>(t) * 16] = choice.kernel(steps, 0.999f, 0.001f);
  };
  std::vector<std::thread> pool;
  for (int t = 1; t < threads; ++t) pool.emplace_back(work, t);
  while (ready.load() < threads - 1) std::this_thread::yield();
  const auto start = std::chrono::steady_clock::now();
  go.store(true);
  work(0);
  for (auto& thread : pool) thread.join();
  const double seconds = seconds_since(start);
  return choice.flops_per_step * static_cast<double>(steps) * threads / seconds;
}

// The clock in Hz, from a chain of dependent integer additions: one addition a clock.
double peak_clock_hz(std::int64_t steps) {
  constexpr int kChain = 64;
  std::uint64_t x = 1, y = static_cast<std::uint64_t>(steps);
  const auto start = std::chrono::steady_clock::now();
  for (std::int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 64
    for (int i = 0; i < kChain; ++i) {
      x += y;
      __asm__ volatile("" : "+r"(x), "+r"(y));
    }
  }
  return kChain * static_cast<double>(steps) / seconds_since(start);
}
}
