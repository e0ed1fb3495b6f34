// Measured codes of a row, and the order of a row's nearest codes: by distance, then by index.
#pragma once

#include <stdint.h>

namespace vqvae_fast {

struct Measured {
  double distance;  // never NaN
  int64_t index;
};

// Moves the k nearest codes of the list to its front, in any order, and returns how many those are.
int64_t keep_nearest(Measured* list, int64_t count, int64_t k);

// Sorts the list, the nearest code first.
void sort_by_distance(Measured* list, int64_t count);

// The search for the k nearest codes writes its answers here, for each row at [row - first_row].
struct TopCodes {
  int64_t k;
  Measured* found;  // [rows][k], sorted
  int64_t* counts;  // [rows]: min(k, usable codes), or a mark
};
// Marks in `counts`: a slower search must serve the row; the row has a NaN; every usable code is
// infinitely far from the row.
constexpr int64_t kUnsettledRow = -1, kNanRow = -2, kInfiniteRow = -3;

}  // namespace vqvae_fast
