// A block's threads as fibres: each runs until it must wait, then the next goes on.
#pragma once

#include <setjmp.h>
#include <stdlib.h>
#include <ucontext.h>

#include <functional>

#include "block.h"

namespace host_cuda {

constexpr size_t kStackBytes = 128 << 10;

struct Fibre {
  dim3 thread{0, 0, 0};
  jmp_buf context;
  ucontext_t start;
  bool started = false, done = true;
};

struct Scheduler {
  Fibre fibres[kMaxThreads];
  int count = 0, current = 0, running = 0;
  jmp_buf context;
  const std::function<void()>* body = nullptr;
  // Of the block, then of each warp: who waits, and how often all have come.
  struct Barrier {
    int waiting = 0;
    unsigned round = 0;
  } block, warps[kMaxThreads / kLanes];
};
inline Scheduler& scheduler() {
  static Scheduler one;
  return one;
}

inline Fibre& self() { return scheduler().fibres[scheduler().current]; }
inline int lane() { return static_cast<int>(self().thread.x) % kLanes; }

[[noreturn]] inline void go_on_with_next() {
  Scheduler& s = scheduler();
  if (s.running == 0) _longjmp(s.context, 1);
  do {
    s.current = (s.current + 1) % s.count;
  } while (self().done);
  if (self().started) _longjmp(self().context, 1);
  self().started = true;
  setcontext(&self().start);
  abort();
}

inline void yield() {
  if (_setjmp(self().context) == 0) go_on_with_next();
}

inline void wait_at(Scheduler::Barrier& barrier, int count) {
  const unsigned round = barrier.round;
  if (++barrier.waiting == count) {
    barrier.waiting = 0;
    ++barrier.round;
  } else {
    while (barrier.round == round) yield();
  }
}
inline void wait_for_block() { wait_at(scheduler().block, scheduler().count); }
inline void wait_for_warp() { wait_at(scheduler().warps[self().thread.x / kLanes], kLanes); }

template <class T, class Read>
auto exchange(const T& value, Read read) {
  Lanes& lanes = lanes_of(static_cast<int>(self().thread.x) / kLanes);
  memcpy(lanes.slots[lane()], &value, sizeof value);
  wait_for_warp();
  const auto result = read(lanes);
  wait_for_warp();  // all have read before anybody writes again
  return result;
}

// A fibre serves block after block: beginning one anew would cost a system call.
inline void serve() {
  for (;;) {
    (*scheduler().body)();
    self().done = true;
    --scheduler().running;
    yield();
  }
}

class Threads {
 public:
  Threads(int count, std::function<void()> body) : count_(count), body_(std::move(body)) {}

  // Runs the body of all threads for each block; begin says which.
  void run_blocks(int64_t blocks, const std::function<void(int64_t)>& begin) const {
    for (int64_t block = 0; block < blocks; ++block) {
      begin(block);
      run_block();
    }
  }

 private:
  void run_block() const {
    Scheduler& s = scheduler();
    s.body = &body_;
    s.count = s.running = count_;
    s.current = count_ - 1;
    for (int t = 0; t < count_; ++t) {
      Fibre& fibre = s.fibres[t];
      fibre.thread.x = static_cast<unsigned>(t);
      fibre.done = false;
      if (fibre.started || fibre.start.uc_stack.ss_sp != nullptr) continue;
      getcontext(&fibre.start);
      fibre.start.uc_stack.ss_sp = malloc(kStackBytes);
      fibre.start.uc_stack.ss_size = kStackBytes;
      makecontext(&fibre.start, serve, 0);
    }
    if (_setjmp(s.context) == 0) go_on_with_next();
  }

  int count_;
  std::function<void()> body_;
};

}  // namespace host_cuda
