// Times a loop on several threads, and the clock.
//
// native.py compiles this file at run time and calls it through ctypes, and likewise the loops in
// multiply_add.cpp, portable.cpp and bandwidth.cpp. A loop runs its steps on a piece of memory, if
// it needs any.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace {

using Loop = void (*)(std::int64_t steps, char* memory, std::int64_t bytes);

#if defined(__linux__)
// OnCore keeps this thread on one core while it lives. Without it the scheduler may put two
// short-lived threads on one core although another is idle.
class OnCore {
 public:
  // Uses core number `number` of those that the process may use.
  explicit OnCore(int number) {
    if (sched_getaffinity(0, sizeof all_, &all_) != 0) return;
    number %= CPU_COUNT(&all_);
    for (int core = 0; core < CPU_SETSIZE; ++core) {
      if (!CPU_ISSET(core, &all_) || number-- > 0) continue;
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(core, &one);
      pinned_ = sched_setaffinity(0, sizeof one, &one) == 0;
      return;
    }
  }
  ~OnCore() {
    if (pinned_) sched_setaffinity(0, sizeof all_, &all_);
  }
  OnCore(const OnCore&) = delete;
  OnCore& operator=(const OnCore&) = delete;

 private:
  cpu_set_t all_;
  bool pinned_ = false;
};
#else
struct OnCore {
  explicit OnCore(int) {}
};
#endif

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

extern "C" {

// Returns the seconds that `threads` threads take to run `steps` steps each. Thread t works on the
// t-th piece of `bytes` bytes of the memory. The time runs from when all are ready to the end of
// the last.
double loop_seconds(Loop loop, std::int64_t steps, int threads, char* memory, std::int64_t bytes) {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  const auto work = [&](int t) { loop(steps, memory ? memory + t * bytes : nullptr, bytes); };
  std::vector<std::thread> pool;
  for (int t = 1; t < threads; ++t) {
    pool.emplace_back([&, t] {
      const OnCore on_core(t);
      ready.fetch_add(1);
      while (!go.load()) std::this_thread::yield();
      work(t);
    });
  }
  const OnCore on_core(0);
  while (ready.load() < threads - 1) std::this_thread::yield();
  const auto start = std::chrono::steady_clock::now();
  go.store(true);
  work(0);
  for (auto& thread : pool) thread.join();
  return seconds_since(start);
}

// Returns the clock in Hz, from a chain of dependent integer additions, one in each clock.
double clock_hz(std::int64_t steps) {
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
