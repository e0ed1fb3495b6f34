// Two searches in C++; search_in_cpp.py compiles them, and docs/benchmarking.md tells their story.
#include <cstdint>
#include <limits>
#include <vector>

// Measures every code of every row, one after the other.
extern "C" void plain(const float* z, const float* codes, int64_t n, int64_t k, int64_t dim,
                      int64_t* indices) {
#pragma omp parallel for
  for (int64_t row = 0; row < n; ++row) {
    float least = std::numeric_limits<float>::infinity();
    for (int64_t code = 0; code < k; ++code) {
      float sum = 0;
      for (int64_t d = 0; d < dim; ++d) {
        const float difference = z[row * dim + d] - codes[code * dim + d];
        sum += difference * difference;
      }
      if (sum < least) {
        least = sum;
        indices[row] = code;
      }
    }
  }
}

constexpr int kAbreast = 64, kRows = 4;

// Scores kAbreast codes and kRows rows at a time. Panels are [panel][dim][kAbreast], so that one
// multiplication of vectors serves several codes. A score is |e|^2/2 - z.e, which orders codes as
// the distance does.
extern "C" void panels(const float* z, const float* panels, const float* half_norms, int64_t n,
                       int64_t k, int64_t dim, int64_t* indices) {
#pragma omp parallel for
  for (int64_t first = 0; first < n; first += kRows) {
    float least[kRows];
    const float* rows[kRows];
    for (int r = 0; r < kRows; ++r) {
      least[r] = std::numeric_limits<float>::infinity();
      rows[r] = z + (first + r < n ? first + r : n - 1) * dim;
    }
    for (int64_t begin = 0; begin < k; begin += kAbreast) {
      float scores[kRows][kAbreast];
      for (int r = 0; r < kRows; ++r) {
        for (int j = 0; j < kAbreast; ++j) scores[r][j] = half_norms[begin + j];
      }
      const float* panel = panels + begin * dim;
      for (int64_t d = 0; d < dim; ++d, panel += kAbreast) {
        for (int r = 0; r < kRows; ++r) {
          for (int j = 0; j < kAbreast; ++j) scores[r][j] -= rows[r][d] * panel[j];
        }
      }
      for (int r = 0; r < kRows && first + r < n; ++r) {
        for (int j = 0; j < kAbreast; ++j) {
          if (scores[r][j] < least[r]) {
            least[r] = scores[r][j];
            indices[first + r] = begin + j;
          }
        }
      }
    }
  }
}
