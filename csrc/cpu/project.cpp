#include "project.h"

#include <algorithm>

#include "aligned_buffer.h"
#include "dispatch.h"

namespace vqvae_fast {
namespace {

// A thread is woken for at least so many multiply-adds.
constexpr int64_t kWorkOfThread = 1 << 20;

}  // namespace

void project(const Affine<float>& map, const Rows<const float>& rows, float* out,
             const ThreadPool& pool) {
  const Engine<float>& engine = instruction_set().engine<float>();
  const int64_t work = rows.count * map.dim * map.columns;
  const int64_t most = std::min(pool.num_threads, std::max<int64_t>(rows.count, 1));
  const int64_t parts = std::clamp<int64_t>(work / kWorkOfThread, 1, most);
  pool.run(parts, [&](int64_t part) {
    const int64_t begin = part_begin(rows.count, parts, part);
    const int64_t end = part_begin(rows.count, parts, part + 1);
    const Buffer scratch = allocate(engine.multiply_scratch_bytes(map.dim));
    engine.multiply(rows, begin, end, map, scratch.get(), out + begin * map.columns);
  });
}

}  // namespace vqvae_fast
