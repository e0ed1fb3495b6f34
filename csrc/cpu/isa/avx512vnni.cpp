// The int8 filter on AVX-512 VNNI: 32 registers hold 14 rows x 2 vectors of codes (28 accumulators)
// and the operands. docs/performance.md tells what limits it.
#include <immintrin.h>

#include "../best.h"
#include "../contract.h"
#include "../exact.h"
#include "../int8_filter/block.h"
#include "../int8_filter/book.h"
#include "../int8_filter/pack.h"
#include "../int8_filter/wide_directions.h"
#include "avx512_lanes.h"

namespace vqvae_fast {
namespace {

// Adds four products of unsigned and signed bytes to each lane. Left to the intrinsic, GCC 12
// copies the accumulator before every one.
inline void add_products(__m512i& sum, __m512i codes, __m512i row) {
#if defined(__GNUC__)
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(row));
#else
  sum = _mm512_dpbusd_epi32(sum, codes, row);
#endif
}

// The same of two products of signed 16-bit integers.
inline void add_wide_products(__m512i& sum, __m512i codes, __m512i row) {
#if defined(__GNUC__)
  __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(row));
#else
  sum = _mm512_dpwssd_epi32(sum, codes, row);
#endif
}

// Adds the products of `words` words to the scores, and moves on behind them.
template <void (*kAdd)(__m512i&, __m512i, __m512i)>
VQVAE_FAST_INLINE void add_words(__m512i (&scores)[kInt8TileRows][2], int64_t words,
                                 const int32_t*& rows, const uint8_t*& panel) {
  for (int64_t w = 0; w < words; ++w) {
    const __m512i codes0 = _mm512_loadu_si512(panel);
    const __m512i codes1 = _mm512_loadu_si512(panel + 64);
    VQVAE_FAST_UNROLL
    for (int i = 0; i < kInt8TileRows; ++i) {
      const __m512i row = _mm512_set1_epi32(rows[i]);
      kAdd(scores[i][0], codes0, row);
      kAdd(scores[i][1], codes1, row);
    }
    rows += kInt8TileRows;
    panel += 128;
  }
}

// Scores of a tile of rows against one panel; keeps the best of each lane in best[row * 16].
template <bool kFirstPanel>
VQVAE_FAST_INLINE void score_tile(const int32_t* rows, const uint8_t* panel, const float* half_norm,
                                  float ratio, int64_t wide_words, int64_t words, int32_t* best) {
  __m512i scores[kInt8TileRows][2];
  VQVAE_FAST_UNROLL
  for (int j = 0; j < 2; ++j) {
    const __m512 start = _mm512_mul_ps(_mm512_loadu_ps(half_norm + 16 * j), _mm512_set1_ps(-ratio));
    const __m512i limited =
        _mm512_max_epi32(_mm512_cvtps_epi32(start), _mm512_set1_epi32(kUnusable));
    VQVAE_FAST_UNROLL
    for (int i = 0; i < kInt8TileRows; ++i) scores[i][j] = limited;
  }
  add_words<add_wide_products>(scores, wide_words, rows, panel);
  add_words<add_products>(scores, words - wide_words, rows, panel);
  VQVAE_FAST_UNROLL
  for (int i = 0; i < kInt8TileRows; ++i) {
    __m512i top = _mm512_max_epi32(scores[i][0], scores[i][1]);
    if (!kFirstPanel) top = _mm512_max_epi32(top, _mm512_loadu_si512(best + 16 * i));
    _mm512_storeu_si512(best + 16 * i, top);
  }
}

// The rows of the block against one group: a panel stays in the L1 for all tiles.
VQVAE_FAST_ALONE void score_group(const Int8Block& block, int64_t tiles, const uint8_t* panels,
                                  const float* half_norm, int64_t wide_words, int64_t words,
                                  int32_t* best) {
  const int64_t panel_bytes = words * 4 * kInt8PanelCodes;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    score_tile<true>(block.rows + tile * kInt8TileRows * words, panels, half_norm,
                     block.ratio[tile], wide_words, words, best + tile * kInt8TileRows * 16);
  }
  for (int64_t tile = 0; tile < tiles; ++tile) {
    score_tile<false>(block.rows + tile * kInt8TileRows * words, panels + panel_bytes,
                      half_norm + kInt8PanelCodes, block.ratio[tile], wide_words, words,
                      best + tile * kInt8TileRows * 16);
  }
}

// Each row's best score in a pass, and where it is. Four rows at a time: one is a chain of
// latencies.
VQVAE_FAST_ALONE void find_tops(const Int8Block& block, int64_t count, int64_t groups) {
  constexpr int64_t kStride = kInt8BlockRows * kInt8Lanes;
  constexpr int kTogether = 4;
  for (int64_t r = 0; r < count; r += kTogether) {
    const int32_t* best = block.best + r * kInt8Lanes;
    __m512i top[kTogether], group[kTogether];
    VQVAE_FAST_UNROLL
    for (int i = 0; i < kTogether; ++i) {
      top[i] = _mm512_loadu_si512(best + i * kInt8Lanes);
      group[i] = _mm512_setzero_si512();
    }
    for (int64_t g = 1; g < groups; ++g) {
      best += kStride;
      const __m512i here = _mm512_set1_epi32(int32_t(g));
      VQVAE_FAST_UNROLL
      for (int i = 0; i < kTogether; ++i) {
        const __m512i score = _mm512_loadu_si512(best + i * kInt8Lanes);
        const __mmask16 higher = _mm512_cmpgt_epi32_mask(score, top[i]);
        top[i] = _mm512_max_epi32(score, top[i]);
        group[i] = _mm512_mask_mov_epi32(group[i], higher, here);
      }
    }
    for (int i = 0; i < kTogether; ++i) {
      const int32_t highest = _mm512_reduce_max_epi32(top[i]);
      const int lane = lowest_bit(_mm512_cmpeq_epi32_mask(top[i], _mm512_set1_epi32(highest)));
      int32_t groups_of_lanes[kInt8Lanes];
      _mm512_storeu_si512(groups_of_lanes, group[i]);
      block.top[r + i] = highest;
      block.top_place[r + i] = groups_of_lanes[lane] * int32_t(kInt8Lanes) + lane;
    }
  }
}

// The codes of a lane of a group lie 16 apart. Behind the last code there is padding; to take the
// last code twice does no harm, nor does one that is not finite: it is never nearer.
inline int64_t code_of(int64_t first, int j, int64_t last_code) {
  return smaller(first + 16 * j, last_code);
}

// Measures the listed lanes of groups. All are measured before any is decided: the latencies of
// one overlap with the next.
template <class In>
VQVAE_FAST_ALONE void measure_listed(const Int8Block& block, const ListedCodes<In>& codes,
                                     int64_t first_group, int64_t num_listed) {
  // A copy stays in registers: the compiler cannot know that nothing writes to `codes`.
  const ListedCodes<In> local = codes;
  for (int64_t i = 0; i < num_listed; ++i) {
    const Int8Candidate listed = block.listed[i];
    const int64_t first = listed.first_code(first_group);
    const In* code[kInt8LaneCodes];
    VQVAE_FAST_UNROLL
    for (int j = 0; j < kInt8LaneCodes; ++j) {
      code[j] = local.row(code_of(first, j, local.count - 1));
    }
    measure<Avx512Lanes>(block.raw[listed.row], code, local.element_stride, local.dim,
                         block.measured + i * kInt8LaneCodes);
  }
}

// Lets the nearest of them win.
VQVAE_FAST_ALONE void offer_listed(const Int8Block& block, int64_t last_code, int64_t first_group,
                                   int64_t num_listed, Nearest out) {
  const double* distances = block.measured;
  for (int64_t i = 0; i < num_listed; ++i, distances += kInt8LaneCodes) {
    const Int8Candidate listed = block.listed[i];
    const int64_t first = listed.first_code(first_group);
    Best nearest{distances[0], 0};
    VQVAE_FAST_UNROLL
    for (int j = 1; j < kInt8LaneCodes; ++j) nearest.offer_later(distances[j], j);
    Best best{out.distances[listed.row], out.indices[listed.row]};
    best.offer(nearest.distance(), code_of(first, int(nearest.index()), last_code));
    best.write(out, listed.row);
  }
}

// Lists the lane of each row's best score, if that may win.
inline int64_t list_tops(const Int8Block& block, int64_t count) {
  int64_t listed = 0;
  for (int64_t r = 0; r < count; ++r) {
    block.listed[listed] = {int32_t(r), block.top_place[r]};
    listed += block.kind[r] == Int8Row::kOpen && block.top[r] >= block.bound[r];
  }
  return listed;
}

// Lists whatever else reaches the bound. A row with too much of it is given up: float32 is quicker
// there.
VQVAE_FAST_ALONE int64_t list_others(const Int8Block& block, int64_t count, int64_t groups,
                                     int64_t dim) {
  static_assert(kInt8PassGroups == 64, "a bit of a word for each group");
  for (int64_t r = 0; r < count; ++r) {
    if (block.top[r] < block.bound[r]) continue;
    const __m512i bound = _mm512_set1_epi32(block.bound[r]);
    const int32_t* score = block.best + r * kInt8Lanes;
    uint16_t* lanes = block.lanes + r * kInt8PassGroups;
    for (int64_t g = 0; g < groups; ++g) {
      lanes[g] = _mm512_cmpge_epi32_mask(_mm512_loadu_si512(score), bound);
      score += kInt8BlockRows * kInt8Lanes;
    }
  }
  const int64_t most = most_listed(dim, groups);
  const uint64_t all = ~uint64_t{0} >> (kInt8PassGroups - groups);
  int64_t num_listed = 0;
  for (int64_t r = 0; r < count; ++r) {
    if (block.kind[r] != Int8Row::kOpen || block.top[r] < block.bound[r]) continue;
    const uint16_t* lanes = block.lanes + r * kInt8PassGroups;
    const __m512i low = _mm512_loadu_si512(lanes), high = _mm512_loadu_si512(lanes + 32);
    uint64_t some = (uint64_t{_mm512_test_epi16_mask(low, low)} |
                     uint64_t{_mm512_test_epi16_mask(high, high)} << 32) &
                    all;
    const int64_t before = num_listed;
    for (; some != 0 && num_listed - before <= most; some &= some - 1) {
      const int g = lowest_bit(some);
      for (uint32_t of = lanes[g]; of != 0 && num_listed - before <= most; of &= of - 1) {
        const int32_t place = int32_t(g * kInt8Lanes + lowest_bit(of));
        block.listed[num_listed] = {int32_t(r), place};
        num_listed += place != block.top_place[r];  // that one is measured
      }
    }
    if (num_listed - before > most) {
      block.kind[r] = Int8Row::kGivenUp;
      num_listed = before;
    }
  }
  return num_listed;
}

inline void raise_bounds(const Int8Block& block, const Int8Bound& bound, int64_t count,
                         Nearest out) {
  for (int64_t r = 0; r < count; ++r) {
    if (out.indices[r] != kNoCode) block.bound[r] = bound(block, r, out.distances[r]);
  }
}

template <class In>
void search_block(const Int8Block& block, const Int8Book<In>& book, int64_t count, Nearest out) {
  const Int8Bound bound(book);
  const int64_t tiles = (count + kInt8TileRows - 1) / kInt8TileRows;
  quantize_rows(block, book, count);
  for (int64_t r = 0; r < count; ++r) {
    out.distances[r] = kInfinity;
    out.indices[r] = kNoCode;
    block.bound[r] = kNoScore;
  }
  for (int64_t first = 0; first < book.num_groups; first += kInt8PassGroups) {
    const int64_t groups = smaller(kInt8PassGroups, book.num_groups - first);
    for (int64_t g = 0; g < groups; ++g) {
      score_group(block, tiles, book.panels + (first + g) * 2 * book.panel_bytes(),
                  book.half_norm + (first + g) * kInt8GroupCodes, book.wide_words(), book.words(),
                  block.best + g * kInt8BlockRows * kInt8Lanes);
    }
    find_tops(block, count, groups);
    int64_t listed = list_tops(block, count);
    measure_listed(block, book.codes, first, listed);
    offer_listed(block, book.codes.count - 1, first, listed, out);
    raise_bounds(block, bound, count, out);
    listed = list_others(block, count, groups, book.codes.dim);
    measure_listed(block, book.codes, first, listed);
    offer_listed(block, book.codes.count - 1, first, listed, out);
    raise_bounds(block, bound, count, out);
  }
}

template <class In>
int64_t search_int8(const Int8Book<In>& book, const Rows<const In>& z, int64_t first_row,
                    int64_t last_row, void* scratch, int64_t* indices, double* distances,
                    int64_t* unsettled) {
  const Int8Block block(book, scratch);
  int64_t num_unsettled = 0;
  for (int64_t row = first_row; row < last_row; row += kInt8BlockRows) {
    const int64_t count = smaller(kInt8BlockRows, last_row - row);
    const Nearest out{indices + (row - first_row), distances + (row - first_row)};
    read_rows(z, row, count, block.copies, block.raw);
    search_block(block, book, count, out);
    for (int64_t r = 0; r < count; ++r) {
      if (block.kind[r] != Int8Row::kOpen) unsettled[num_unsettled++] = row + r;
    }
  }
  return num_unsettled;
}

template <class In>
int64_t scratch_bytes(const Int8Book<In>& book) {
  return Int8Block(book, nullptr).bytes();
}

template <class In>
constexpr Int8Filter<In> make_filter() {
  return {abreast_bytes, WideScratch::bytes, find_wide<In>,  extent_int8<In>,
          pack_int8<In>, scratch_bytes<In>,  search_int8<In>};
}

}  // namespace

extern const Int8Filters kInt8Filters = {make_filter<float>(), make_filter<BFloat16>(),
                                         make_filter<Half>()};

}  // namespace vqvae_fast
