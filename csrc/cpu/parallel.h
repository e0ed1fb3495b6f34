// The caller of the kernels supplies the threads that run the parts of a search.
#pragma once

#include <stdint.h>

#include <functional>

namespace vqvae_fast {

struct ThreadPool {
  int64_t num_threads;
  // Calls body(task) for each task in [0, count), in any order, on up to num_threads threads.
  std::function<void(int64_t count, const std::function<void(int64_t)>& body)> run;
};

// Returns where part `i` begins if [0, count) is divided into `parts` nearly equal parts.
inline int64_t part_begin(int64_t count, int64_t parts, int64_t i) {
  return count / parts * i + (i < count % parts ? i : count % parts);
}

}  // namespace vqvae_fast
