// The scores of the matrix unit's kernel, over the unit's stand-in, against plain sums: all
// dimensions that the orders of its loops distinguish, with and without wide ones, 1 to 40 rows.
#include <math.h>

#include <random>
#include <vector>

#include "../../csrc/cpu/isa/amx_kernel.h"
#include "amx_stand_in.h"

namespace vqvae_fast {
namespace {

using Kernel = AmxKernel<StandInTiles>;
using Random = std::mt19937_64;
constexpr int64_t kLanes = 16, kCodes = Kernel::kGroupCodes, kTile = Kernel::kTileRows;
constexpr int32_t kUntouched = 0x5a5a5a5a;

int32_t number(Random& random, int32_t largest) {
  switch (random() % 8) {  // the extremes often
    case 0:
      return largest;
    case 1:
      return -largest;
    default:
      return int32_t(random() % uint64_t(2 * largest + 1)) - largest;
  }
}

// Vectors of integers: those of the wide dimensions in 16 bits, the others in 8.
struct Vectors {
  int64_t dim, num_wide;
  std::vector<int32_t> all;  // [count][dim]

  Vectors(Random& random, int64_t count, int64_t dim_, int64_t num_wide_)
      : dim(dim_), num_wide(num_wide_), all(count * dim_) {
    for (size_t i = 0; i < all.size(); ++i) {
      all[i] = number(random, int64_t(i) % dim < num_wide ? 32767 : 127);
    }
  }

  // Word w of a vector, as the filter packs it: zeros behind its last dimension.
  int32_t word(int64_t vector, int64_t w) const {
    const int64_t wide = num_wide / 2, per_word = w < wide ? 2 : 4, bits = 32 / per_word;
    const int64_t first = w < wide ? 2 * w : num_wide + 4 * (w - wide);
    uint32_t packed = 0;
    for (int64_t i = 0; i < per_word && first + i < dim; ++i) {
      const uint32_t field = uint32_t(all[vector * dim + first + i]) & ((1u << bits) - 1);
      packed |= field << (i * bits);
    }
    return int32_t(packed);
  }

  __m512i words(int64_t first, int64_t count, int64_t w) const {
    int32_t of[kLanes] = {};
    for (int64_t l = 0; l < kLanes && first + l < count; ++l) of[l] = word(first + l, w);
    return _mm512_loadu_si512(of);
  }
};

int32_t expected(const Vectors& rows, int64_t r, const Vectors& codes, int64_t k, float half_norm,
                 float ratio) {
  const float start = half_norm * ratio;
  uint32_t score = uint32_t(start < float(kUnusable) ? kUnusable : int32_t(lrintf(start)));
  for (int64_t d = 0; d < rows.dim; ++d) {
    score += uint32_t(rows.all[r * rows.dim + d] * codes.all[k * rows.dim + d]);
  }
  return int32_t(score);
}

bool check(Random& random, int64_t dim, int64_t num_wide, int64_t num_rows) {
  const Int8Words words{num_wide / 2, num_wide / 2 + (dim - num_wide + 3) / 4};
  const Vectors rows(random, num_rows, dim, num_wide), codes(random, kCodes, dim, num_wide);
  const int64_t tiles = (num_rows + kTile - 1) / kTile, padded = tiles * kTile;
  std::vector<int32_t> packed_rows(padded * Kernel::row_words(words), kUntouched);
  std::vector<int32_t> group(kCodes * words.all, kUntouched);
  for (int64_t t = 0; t < tiles; ++t) {
    int32_t* tile = packed_rows.data() + t * kTile * Kernel::row_words(words);
    for (int64_t first = 0; first < kTile; first += kLanes) {
      for (int64_t w = 0; w < words.all; ++w) {
        Kernel::pack_rows(tile, words, w, first, rows.words(t * kTile + first, num_rows, w));
      }
    }
  }
  for (int64_t first = 0; first < kCodes; first += kLanes) {
    for (int64_t w = 0; w < words.all; ++w) {
      Kernel::pack_codes(group.data(), words, w, first, codes.words(first, kCodes, w));
    }
  }
  std::vector<float> half_norm(kCodes), ratio(tiles);
  for (float& h : half_norm) {
    h = random() % 16 == 0 ? -HUGE_VALF : -float(random() % 100000) / 16;
  }
  for (float& r : ratio) r = float(1 + random() % 1000);
  std::vector<int32_t> best(padded * kLanes, kUntouched), scores(kCodes, kUntouched);
  {
    const Kernel::Session session(words);
    Kernel::score_group(packed_rows.data(), num_rows, ratio.data(), group.data(), half_norm.data(),
                        words, best.data());
  }
  for (int64_t r = 0; r < num_rows; ++r) {
    Kernel::score_row(packed_rows.data() + r / kTile * kTile * Kernel::row_words(words), r % kTile,
                      ratio[r / kTile], group.data(), half_norm.data(), words, scores.data());
    std::vector<int32_t> of_lane(kLanes, INT32_MIN);
    for (int64_t k = 0; k < kCodes; ++k) {
      const int32_t score = expected(rows, r, codes, k, half_norm[k], ratio[r / kTile]);
      int32_t& highest = of_lane[k % kLanes];
      highest = score > highest ? score : highest;
      if (scores[k] == score) continue;
      printf("D %d, %d wide, row %d of %d, code %d: expected the score %d, got %d\n", int(dim),
             int(num_wide), int(r), int(num_rows), int(k), score, scores[k]);
      return false;
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int32_t found = best[r * kLanes + lane];
      if (found == of_lane[lane]) continue;
      printf("D %d, %d wide, row %d of %d, lane %d: expected the best score %d, got %d\n", int(dim),
             int(num_wide), int(r), int(num_rows), int(lane), of_lane[lane], found);
      return false;
    }
  }
  return true;
}

}  // namespace
}  // namespace vqvae_fast

int main() {
  using namespace vqvae_fast;
  Random random(1);
  int64_t checked = 0;
  const auto check_both = [&](int64_t dim, int64_t rows) {
    ++checked;
    return check(random, dim, 0, rows) && (dim < 16 || check(random, dim, kWideDims, rows));
  };
  for (int64_t dim = 8; dim <= 300; ++dim) {
    if (!check_both(dim, 1 + int64_t(random() % 40))) return 1;
  }
  for (const int64_t dim : {8, 63, 64, 100, 128, 192, 200, 256, 264}) {
    for (int64_t rows = 1; rows <= 40; ++rows) {
      if (!check_both(dim, rows)) return 1;
    }
  }
  for (const int64_t dim : {1023, 1024, 1025, 1031, 2000, 4095, 4096}) {
    if (!check_both(dim, 40)) return 1;
  }
  for (const int64_t rows : {64, 65, 127, 128}) {  // up to a whole block
    for (const int64_t dim : {40, 72, 256}) {
      if (!check_both(dim, rows)) return 1;
    }
  }
  printf("checked %d\n", int(checked));
  return 0;
}
