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
inline pthread_barrier_t& warp_barrier(int warp) {
  static pthread_barrier_t barriers[kMaxThreads / kLanes];
  return barriers[warp];
}
inline void wait_for_block() { pthread_barrier_wait(&block_barrier()); }
inline void wait_for_warp() {
  pthread_barrier_wait(&warp_barrier(static_cast<int>(self().thread.x) / kLanes));
}

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

  // Runs the body of all threads for each block; begin says which.
  void run_blocks(int64_t blocks, const std::function<void(int64_t)>& begin) const {
    pthread_barrier_init(&block_barrier(), nullptr, static_cast<unsigned>(count_));
    for (int warp = 0; warp < count_ / kLanes; ++warp) {
      pthread_barrier_init(&warp_barrier(warp), nullptr, kLanes);
    }
    std::vector<std::thread> threads;
    for (int t = 0; t < count_; ++t) {
      threads.emplace_back([&, t] {
        self().thread.x = static_cast<unsigned>(t);
        for (int64_t block = 0; block < blocks; ++block) {
          if (t == 0) begin(block);
          wait_for_block();
          body_();
          wait_for_block();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    pthread_barrier_destroy(&block_barrier());
    for (int warp = 0; warp < count_ / kLanes; ++warp) {
      pthread_barrier_destroy(&warp_barrier(warp));
    }
  }

 private:
  int count_;
  std::function<void()> body_;
};

}  // namespace host_cuda
