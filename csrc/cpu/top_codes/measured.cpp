#include "measured.h"

#include <algorithm>

namespace vqvae_fast {
namespace {

// A function object, because a pointer to a function would be called for each comparison.
constexpr auto is_nearer = [](const Measured& a, const Measured& b) {
  return a.distance < b.distance || (a.distance == b.distance && a.index < b.index);
};

}  // namespace

int64_t keep_nearest(Measured* list, int64_t count, int64_t k) {
  if (count <= k) return count;
  std::nth_element(list, list + k, list + count, is_nearer);
  return k;
}

void sort_by_distance(Measured* list, int64_t count) { std::sort(list, list + count, is_nearer); }

}  // namespace vqvae_fast
