// Divides a search among threads, and merges what its parts find.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <vector>

#include "contract.h"

namespace vqvae_fast {

// The rows are divided first, because that repeats no work. If they are too few for the threads,
// the codes are divided too, and each part of the codes has an answer of its own to merge.
struct Division {
  int64_t row_parts;
  int64_t code_parts;
};

inline Division divide(int64_t rows, int64_t tile_rows, int64_t most_code_parts,
                       int64_t num_threads) {
  const int64_t row_tiles = (rows + tile_rows - 1) / tile_rows;
  const int64_t row_parts = std::clamp<int64_t>(row_tiles / 2, 1, num_threads);
  return {row_parts, std::min((num_threads + row_parts - 1) / row_parts, most_code_parts)};
}

// Merges the answers of the parts of the codebook for some rows: the smallest distance wins, the
// lowest index among equals. A row with a NaN has the same answer in every part.
template <class T>
void merge(const std::vector<Nearest>& parts, int64_t rows, int64_t* indices, T* distances) {
  for (int64_t n = 0; n < rows; ++n) {
    int64_t index = parts[0].indices[n];
    double distance = parts[0].distances[n];
    for (const Nearest& part : parts) {
      const double d = part.distances[n];
      if (d < distance || (d == distance && part.indices[n] < index)) {
        index = part.indices[n];
        distance = d;
      }
    }
    indices[n] = index;
    distances[n] = T(distance);
  }
}

}  // namespace vqvae_fast
