// A block's threads as real threads, for the sanitizers.
#pragma once

#include <pthread.h>

#include <functional>
#include <thread>
#include <vector>

#include "block.h"

namespace host_cuda {

struct Self {
  dim3 thread{0, 0, 0};
};
inline Self& self() {
  thread_local Self one;
  return one;
}
inline int lane() { return static_cast<int>(self().thread.x) % kLanes; }

inline pthread_barrier_t& block_barrier() {
  static pthread_barrier_t barrier;
  return barrier;
}
inline pthread_barrier_t& warp_barrier() {
  static pthread_barrier_t barriers[kMaxThreads / kLanes];
  return barriers[self().thread.x / kLanes];
}
inline void wait_for_block() { pthread_barrier_wait(&block_barrier()); }
inline void wait_for_warp() { pthread_barrier_wait(&warp_barrier()); }

template <class T, class Read>
auto exchange(const T& value, Read read) {
  Lanes& lanes = lanes_of(static_cast<int>(self().thread.x) / kLanes);
  memcpy(lanes.slots[lane()], &value, sizeof value);
  wait_for_warp();
  const auto result = read(lanes);
  wait_for_warp();  // all have read before anybody writes again
  return result;
}

class Threads {
 public:
  Threads(int count, std::function<void()> body) : count_(count), body_(std::move(body)) {}

  void run_block() const {
    pthread_barrier_init(&block_barrier(), nullptr, static_cast<unsigned>(count_));
    std::vector<std::thread> threads;
    for (int t = 0; t < count_; ++t) {
      threads.emplace_back([this, t] {
        self().thread.x = static_cast<unsigned>(t);
        if (lane() == 0) pthread_barrier_init(&warp_barrier(), nullptr, kLanes);
        wait_for_block();
        body_();
        wait_for_block();
        if (lane() == 0) pthread_barrier_destroy(&warp_barrier());
      });
    }
    for (std::thread& thread : threads) thread.join();
    pthread_barrier_destroy(&block_barrier());
  }

 private:
  int count_;
  std::function<void()> body_;
};

}  // namespace host_cuda
