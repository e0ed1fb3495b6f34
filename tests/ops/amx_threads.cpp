// Searches over the matrix unit's stand-in in several threads at once and in a process that was
// forked, where some threads hold tiles of another library. Every search must return the same
// codes, and leave the thread's shapes of tiles as it has found them.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/cpu/search.h"

namespace vqvae_fast {

unsigned char* stand_in_configuration();  // amx_stand_in.cpp

namespace {

constexpr int64_t kRows = 300, kCodes = 1000, kDim = 72;

struct Data {
  std::vector<float> rows, codes;
};

// Returns the nearest codes, or nothing if the search has changed the shapes of tiles.
std::vector<int64_t> search(const Data& data, bool holds_tiles) {
  unsigned char before[64] = {};
  if (holds_tiles) {  // palette 1: tile 2 has 3 rows of 8 bytes
    before[0] = 1;
    before[16 + 2 * 2] = 8;
    before[48 + 2] = 3;
  }
  std::memcpy(stand_in_configuration(), before, sizeof before);
  const ThreadPool alone{1, [](int64_t count, const std::function<void(int64_t)>& body) {
                           for (int64_t i = 0; i < count; ++i) body(i);
                         }};
  std::vector<int64_t> indices(kRows, -1);
  std::vector<float> distances(kRows);
  const Rows<const float> rows{data.rows.data(), kRows, kDim, kRows, 0, kDim, 1};
  const Codes<float> codes{data.codes.data(), kCodes, kDim, kDim, 1};
  search_codebook<float>(rows, codes, {}, indices.data(), distances.data(), Rows<float>{}, alone);
  if (std::memcmp(stand_in_configuration(), before, sizeof before) != 0) indices.clear();
  return indices;
}

int run() {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  Data data{std::vector<float>(kRows * kDim), std::vector<float>(kCodes * kDim)};
  for (auto* all : {&data.rows, &data.codes}) {
    for (float& v : *all) v = normal(random);
  }
  select_instruction_set("portable");
  const std::vector<int64_t> wanted = search(data, false);
  select_instruction_set("amx_stand_in");
  const auto agrees = [&](bool holds_tiles) { return search(data, holds_tiles) == wanted; };

  constexpr int kThreads = 6;
  bool agreed[kThreads] = {};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      agreed[t] = true;
      for (int i = 0; i < 5; ++i) agreed[t] = agreed[t] && agrees(t % 2 == 1);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int t = 0; t < kThreads; ++t) {
    if (!agreed[t]) return std::printf("thread %d differs\n", t), 1;
  }
  for (const bool holds_tiles : {false, true}) {
    if (!agrees(holds_tiles)) return std::printf("the main thread differs\n"), 1;
    const pid_t child = fork();
    if (child == 0) _exit(agrees(holds_tiles) && agrees(!holds_tiles) ? 0 : 1);
    int status = 1;
    if (waitpid(child, &status, 0) != child || status != 0) {
      return std::printf("the forked process differs\n"), 1;
    }
  }
  std::printf("agreed\n");
  return 0;
}

}  // namespace
}  // namespace vqvae_fast

int main() { return vqvae_fast::run(); }
