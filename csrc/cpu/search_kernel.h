// The fused search, once for all instruction sets: each search_*.cpp supplies a Simd type (vector,
// width, tile shape) and instantiates it. Unnamed namespace and no standard library: nothing
// compiled here may be shared with code built for a lesser machine.
#pragma once

#include <stdint.h>

#include "contract.h"
#include "elements.h"
#include "exact.h"

// Loops over a tile must be unrolled before the compiler decides what lives in registers: left to
// itself, GCC unrolls them too late and sends every accumulator through the stack.
#if defined(__GNUC__)
#define VQVAE_FAST_UNROLL _Pragma("GCC unroll 8")
#else
#define VQVAE_FAST_UNROLL
#endif

namespace vqvae_fast {
namespace {

constexpr int64_t kAlignment = 64;  // a cache line, and the widest vector
constexpr int64_t kMaxRows = 128;   // rows of a block: more would push their best out of the cache
constexpr int64_t kPassPanels = 1024;  // panels between two measurements: bounds what is remembered

// Long rows share a panel among more of them, because the panel then comes from further away; in
// the end they too have to fit into the L2.
template <class Simd>
constexpr int64_t block_rows(int64_t dim) {
  const int64_t bytes = dim * int64_t(sizeof(typename Simd::T));
  const int64_t rows = bytes < 512 ? kMaxRows / 2 : smaller(kMaxRows, (int64_t{1} << 18) / bytes);
  return rows < Simd::kTileRows ? Simd::kTileRows : rows / Simd::kTileRows * Simd::kTileRows;
}

// ---- Packing --------------------------------------------------------------------------------

// Centres and scales one code into its column of a panel; returns |e|^2 of what it wrote.
template <class Simd, class In>
double pack_code(const PackedBook<In>& book, int64_t k, Compute<In>* column) {
  using T = Compute<In>;
  using Doubles = typename Simd::Doubles;
  const int64_t dim = book.codes.dim;
  const int64_t stride = book.codes.element_stride;
  const In* code = book.codes.row(k);
  typename Doubles::Vec square = Doubles::zero();
  for (int64_t d = 0; d < dim; d += 8) {
    T e[8] = {};
    const int64_t count = smaller(8, dim - d);
    for (int64_t l = 0; l < count; ++l) {
      e[l] = widen(code[(d + l) * stride]) * book.scale - book.centre[d + l];
    }
    for (int64_t l = 0; l < count; ++l) column[(d + l) * Simd::kTileCodes] = e[l];
    square = Doubles::add_square(square, Doubles::load(e));
  }
  return Doubles::sum(square);
}

template <class Simd, class In>
PackedRange pack(const PackedBook<In>& book, int64_t first, int64_t last) {
  using T = Compute<In>;
  constexpr int64_t width = Simd::kTileCodes;
  const Codes<In>& codes = book.codes;
  const int64_t dim = codes.dim;
  PackedRange range{0.0, -1};
  for (int64_t panel = first; panel < last; ++panel) {
    T* out = book.panels + panel * dim * width;
    for (int64_t j = 0; j < width; ++j) {
      const int64_t k = panel * width + j;
      double square = kInfinity;
      if (k < codes.count) square = pack_code<Simd>(book, k, out + j);
      const bool usable = square < kInfinity;  // false for NaN too
      if (!usable) {
        for (int64_t d = 0; d < dim; ++d) out[d * width + j] = 0;
      } else {
        range.max_norm = larger(range.max_norm, sqrt(square));
        if (range.first_usable < 0) range.first_usable = k;
      }
      book.start[panel * width + j] = usable ? T(-0.5 * square) : -T(kInfinity);
    }
  }
  return range;
}

// ---- A block of rows ------------------------------------------------------------------------

enum class RowKind : int32_t { kOrdinary, kExhaustive, kInfinite, kNan };

// The memory of one thread, in one piece. Per row and lane: the best score and the second best.
// Where the best came from is kept as one bit a lane and panel, "here the best rose"; a vector of
// panel numbers in its place costs a tenth of the time at D = 8, for its stores.
template <class Simd>
struct Block {
  using T = typename Simd::T;
  using Mask = typename Simd::Mask;
  static constexpr int64_t kStateSize = 2 * Simd::kWidth;

  int64_t row_stride;
  T* copies;            // [rows][D]: the rows, where they cannot be read in place
  const T** raw;        // [rows]: the rows as they are
  T* centred;           // [rows][row_stride]: centred and scaled
  T* state;             // [rows][2][kWidth]
  Mask* rose;           // [kPassPanels][rows]
  double* norm;         // [rows]: |z|, centred and scaled
  RowKind* kind;        // [rows]
  Mask* top_lane;       // [rows]: the lane with the best score, as a bit; 0 for rows to pass over
  uint16_t* top_panel;  // [rows]: the panel in the pass at which that lane rose last
  T* bound;             // [rows]: the score below which a code cannot be the nearest
  int64_t* unsettled;   // [num_unsettled]: rows that the first look at a pass cannot settle
  int64_t rows;
  int64_t num_unsettled;

  Block(int64_t dim, void* scratch) : rows(block_rows<Simd>(dim)), num_unsettled(0) {
    // A line between the rows keeps those of a power of two out of each other's cache sets.
    constexpr int64_t line = kAlignment / int64_t(sizeof(T));
    row_stride = (dim + line - 1) / line * line + line;
    at_ = begin_ = reinterpret_cast<uintptr_t>(scratch);
    copies = take<T>(rows * dim);
    raw = take<const T*>(rows);
    centred = take<T>(rows * row_stride);
    state = take<T>(rows * kStateSize);
    rose = take<Mask>(kPassPanels * rows);
    norm = take<double>(rows);
    kind = take<RowKind>(rows);
    top_lane = take<Mask>(rows);
    top_panel = take<uint16_t>(rows);
    unsettled = take<int64_t>(rows);
    bound = take<T>(rows);
  }

  T* best(int64_t row) const { return state + row * kStateSize; }
  T* second(int64_t row) const { return best(row) + Simd::kWidth; }
  int64_t bytes() const { return int64_t(at_ - begin_); }

 private:
  template <class Element>
  Element* take(int64_t count) {
    Element* taken = reinterpret_cast<Element*>(at_);
    at_ += uintptr_t((count * int64_t(sizeof(Element)) + kAlignment - 1) / kAlignment * kAlignment);
    return taken;
  }
  uintptr_t at_;
  uintptr_t begin_;
};

template <class Simd>
int64_t scratch_bytes(int64_t dim) {
  return Block<Simd>(dim, nullptr).bytes();
}

// Finds rows [first, first + count): in place, or widened and side by side in `copies`.
template <class Simd, class In>
void read_rows(Block<Simd>& block, const Rows<const In>& z, int64_t first, int64_t count) {
  const int64_t dim = z.dim;
  if constexpr (sizeof(In) == sizeof(Compute<In>)) {
    if (z.element_stride == 1) {
      for (int64_t r = 0; r < count; ++r) block.raw[r] = z.row(first + r);
      return;
    }
  }
  const In* rows[kMaxRows];
  for (int64_t r = 0; r < count; ++r) {
    rows[r] = z.row(first + r);
    block.raw[r] = block.copies + r * dim;
  }
  if (z.element_stride == 1) {
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t d = 0; d < dim; ++d) block.copies[r * dim + d] = widen(rows[r][d]);
    }
    return;
  }
  for (int64_t d = 0; d < dim; ++d) {  // feature maps lie along their rows
    const int64_t offset = d * z.element_stride;
    for (int64_t r = 0; r < count; ++r) block.copies[r * dim + d] = widen(rows[r][offset]);
  }
}

template <class T>
RowKind unusual_kind(const T* row, int64_t dim) {
  RowKind kind = RowKind::kExhaustive;
  for (int64_t d = 0; d < dim; ++d) {
    if (row[d] != row[d]) return RowKind::kNan;
    if (row[d] - row[d] != 0) kind = RowKind::kInfinite;
  }
  return kind;
}

// Writes row `from` of the block, centred and scaled, to place `to`; returns its |z|^2.
template <class Simd, class In>
double centre_row(const Block<Simd>& block, const PackedBook<In>& book, int64_t from, int64_t to) {
  using T = typename Simd::T;
  using Doubles = typename Simd::Doubles;
  const int64_t dim = book.codes.dim;
  const T* raw = block.raw[from];
  T* out = block.centred + to * block.row_stride;
  const auto scale = Doubles::broadcast(double(book.scale));
  typename Doubles::Vec square = Doubles::zero();
  for (int64_t d = 0; d < dim; d += 8) {
    // In float64, because the bound needs the norm of the row and not that of its rounding.
    const auto z =
        Doubles::subtract(Doubles::multiply(load_lanes<Doubles>(raw + d, 1, dim - d), scale),
                          load_lanes<Doubles>(book.centre + d, 1, dim - d));
    square = Doubles::add_square(square, z);
    Doubles::store(out + d, z);  // rows are padded to whole vectors
  }
  return Doubles::sum(square);
}

template <class Simd>
void zero_row(const Block<Simd>& block, int64_t dim, int64_t to) {
  for (int64_t d = 0; d < dim; ++d) block.centred[to * block.row_stride + d] = 0;
}

// Rows whose scores could overflow, or that are not finite, take another way.
template <class Simd, class In>
void classify(const Block<Simd>& block, const PackedBook<In>& book, int64_t count) {
  using T = typename Simd::T;
  const int64_t dim = book.codes.dim;
  const bool long_rows = too_long<T>(dim);
  for (int64_t r = 0; r < count; ++r) {
    block.norm[r] = sqrt(centre_row(block, book, r, r));
    const double reach = block.norm[r] + book.max_norm;
    const bool ordinary = reach * (1 + reach) < Precision<T>::largest && !long_rows;
    block.kind[r] = ordinary ? RowKind::kOrdinary : unusual_kind(block.raw[r], dim);
    if (!ordinary) zero_row(block, dim, r);
  }
}

// ---- The inner loops ------------------------------------------------------------------------

// Scores of one tile: kTileRows rows against one panel.
template <class Simd>
struct Scores {
  typename Simd::Vec at[Simd::kTileRows][Simd::kTileVecs];
};

template <class Simd>
inline void score_tile(Scores<Simd>& scores, const typename Simd::T* rows, int64_t row_stride,
                       const typename Simd::T* panel, const typename Simd::T* start, int64_t dim) {
  using Vec = typename Simd::Vec;
  VQVAE_FAST_UNROLL
  for (int j = 0; j < Simd::kTileVecs; ++j) {
    VQVAE_FAST_UNROLL
    for (int i = 0; i < Simd::kTileRows; ++i) {
      scores.at[i][j] = Simd::load(start + j * Simd::kWidth);
    }
  }
  for (int64_t d = 0; d < dim; ++d) {
    Vec codes[Simd::kTileVecs];
    VQVAE_FAST_UNROLL
    for (int j = 0; j < Simd::kTileVecs; ++j) codes[j] = Simd::load(panel + j * Simd::kWidth);
    VQVAE_FAST_UNROLL
    for (int i = 0; i < Simd::kTileRows; ++i) {
      const Vec z = Simd::broadcast(rows[i * row_stride]);
      VQVAE_FAST_UNROLL
      for (int j = 0; j < Simd::kTileVecs; ++j) {
        scores.at[i][j] = Simd::multiply_add(z, codes[j], scores.at[i][j]);
      }
    }
    panel += Simd::kTileCodes;
    ++rows;
  }
}

// First look at one panel. Its codes that share a lane are reduced to their maximum before they
// meet the running best, and measure_lane() will measure all of them: so a vector of scores costs
// two instructions, the second best included.
template <class Simd>
void keep_best(const Block<Simd>& block, int64_t num_tiles, const typename Simd::T* panel,
               const typename Simd::T* start, int64_t panel_in_pass, int64_t dim) {
  using Vec = typename Simd::Vec;
  const typename Simd::T* rows = block.centred;
  const int64_t row_stride = block.row_stride;
  typename Simd::T* state = block.state;
  typename Simd::Mask* rose = block.rose + panel_in_pass * block.rows;
  for (int64_t tile = 0; tile < num_tiles; ++tile, rows += Simd::kTileRows * row_stride) {
    Scores<Simd> scores;
    score_tile<Simd>(scores, rows, row_stride, panel, start, dim);
    VQVAE_FAST_UNROLL
    for (int i = 0; i < Simd::kTileRows; ++i, state += Block<Simd>::kStateSize) {
      Vec top = scores.at[i][0];
      VQVAE_FAST_UNROLL
      for (int j = 1; j < Simd::kTileVecs; ++j) top = Simd::max(top, scores.at[i][j]);
      const Vec best = Simd::load(state);
      const Vec second = Simd::load(state + Simd::kWidth);
      *rose++ = Simd::greater(top, best);
      Simd::store(state, Simd::max(best, top));
      Simd::store(state + Simd::kWidth, Simd::max(second, Simd::min(top, best)));
    }
  }
}

template <class Simd>
void store_scores(typename Simd::T* out, const typename Simd::T* rows, int64_t row_stride,
                  const typename Simd::T* panel, const typename Simd::T* start, int64_t dim) {
  Scores<Simd> scores;
  score_tile<Simd>(scores, rows, row_stride, panel, start, dim);
  VQVAE_FAST_UNROLL
  for (int i = 0; i < Simd::kTileRows; ++i) {
    VQVAE_FAST_UNROLL
    for (int j = 0; j < Simd::kTileVecs; ++j) {
      Simd::store(out + i * Simd::kTileCodes + j * Simd::kWidth, scores.at[i][j]);
    }
  }
}

// ---- From scores to the exact answer --------------------------------------------------------

// The nearest code of a row so far. Which of a few candidates is nearest no predictor can know, so
// offer() is arithmetic that no compiler turns into a branch: distances are not negative, and such
// float64 numbers order as their bits do.
class Best {
 public:
  Best(double distance, int64_t index) : bits_(to_bits(distance)), index_(index) {}

  void offer(double distance, int64_t index) {
    const uint64_t bits = to_bits(distance);
    const bool nearer = (bits < bits_) | ((bits == bits_) & (index < index_));
    const uint64_t keep = uint64_t{nearer} - 1;  // all bits, or none
    bits_ = (bits & ~keep) | (bits_ & keep);
    index_ = int64_t((uint64_t(index) & ~keep) | (uint64_t(index_) & keep));
  }

  void write(const Nearest& out, int64_t row) const {
    memcpy(out.distances + row, &bits_, sizeof bits_);
    out.indices[row] = index_;
  }

 private:
  static uint64_t to_bits(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
  }
  uint64_t bits_;
  int64_t index_;
};

template <class Simd, class In>
inline void measure(const PackedBook<In>& book, const Compute<In>* raw, int64_t k, Best& best) {
  const Codes<In>& codes = book.codes;
  const In* code = codes.row(k);
  best.offer(distance<typename Simd::Doubles, In>(raw, code, codes.element_stride, codes.dim), k);
}

// Measures the codes of a panel that share a lane, side by side.
template <class Simd, class In>
inline void measure_lane(const PackedBook<In>& book, const typename Simd::T* raw, int64_t panel,
                         int lane, Best& best) {
  using Doubles = typename Simd::Doubles;
  const Codes<In>& codes = book.codes;
  const int64_t dim = codes.dim, stride = codes.element_stride;
  int64_t index[Simd::kTileVecs];
  const In* code[Simd::kTileVecs];
  typename Doubles::Vec sum[Simd::kTileVecs];
  VQVAE_FAST_UNROLL
  for (int j = 0; j < Simd::kTileVecs; ++j) {
    // Behind the last code there is padding; to measure the last code twice does no harm.
    index[j] = smaller(panel * Simd::kTileCodes + j * Simd::kWidth + lane, codes.count - 1);
    code[j] = codes.row(index[j]);
    sum[j] = Doubles::zero();
  }
  for (int64_t d = 0; d < dim; d += 8) {
    const auto z = load_lanes<Doubles>(raw + d, 1, dim - d);
    VQVAE_FAST_UNROLL
    for (int j = 0; j < Simd::kTileVecs; ++j) {
      const auto e = load_lanes<Doubles>(code[j] + d * stride, stride, dim - d);
      sum[j] = Doubles::add_square(sum[j], Doubles::subtract(z, e));
    }
  }
  VQVAE_FAST_UNROLL
  for (int j = 0; j < Simd::kTileVecs; ++j) {
    if (book.start[index[j]] > -kInfinity) best.offer(Doubles::sum(sum[j]), index[j]);
  }
}

// From here the rows of a block go through one step after the other together, because a row on its
// own is a chain of latencies that the processor cannot shorten, only overlap with other rows'.

// The lane with each row's best score.
template <class Simd>
void find_lanes(const Block<Simd>& block, const ScoreBound<typename Simd::T>& score_bound,
                int64_t count, Nearest out) {
  using T = typename Simd::T;
  for (int64_t r = 0; r < count; ++r) {
    const auto scores = Simd::load(block.best(r));
    const T top = Simd::reduce_max(scores);
    const uint32_t lanes = Simd::at_least(scores, Simd::broadcast(top));
    const bool any_code = top > -T(kInfinity) && block.kind[r] == RowKind::kOrdinary;
    const bool can_win =
        out.indices[r] == kNoCode || top >= score_bound(block.norm[r], out.distances[r]);
    block.top_lane[r] = any_code && can_win ? typename Simd::Mask(lanes & (~lanes + 1)) : 0;
  }
}

// The panel at which that lane rose last.
template <class Simd>
void find_panels(const Block<Simd>& block, int64_t count, int64_t num_panels) {
  const typename Simd::Mask* lane = block.top_lane;
  uint16_t* found = block.top_panel;
  for (int64_t panel = 0; panel < num_panels; ++panel) {
    const typename Simd::Mask* rose = block.rose + panel * block.rows;
    for (int64_t r = 0; r < count; ++r) {
      found[r] = (rose[r] & lane[r]) != 0 ? uint16_t(panel) : found[r];
    }
  }
}

template <class Simd, class In>
void measure_tops(const Block<Simd>& block, const PackedBook<In>& book, int64_t count,
                  int64_t first_panel, Nearest out) {
  for (int64_t r = 0; r < count; ++r) {
    if (block.top_lane[r] == 0) continue;
    Best best{out.distances[r], out.indices[r]};
    measure_lane<Simd, In>(book, block.raw[r], first_panel + block.top_panel[r],
                           lowest_bit(block.top_lane[r]), best);
    best.write(out, r);
  }
}

// Measures the other lanes whose best may still win. Where a second best may win too, nobody knows
// which code that was: the row goes to the unsettled ones.
template <class Simd, class In>
void measure_others(Block<Simd>& block, const PackedBook<In>& book,
                    const ScoreBound<typename Simd::T>& score_bound, int64_t count,
                    int64_t first_panel, int64_t last_panel, Nearest out) {
  for (int64_t r = 0; r < count; ++r) {
    block.bound[r] = score_bound(block.norm[r], out.distances[r]);
  }
  block.num_unsettled = 0;
  for (int64_t r = 0; r < count; ++r) {
    if (block.top_lane[r] == 0) continue;
    const auto bounds = Simd::broadcast(block.bound[r]);
    uint32_t lanes = Simd::at_least(Simd::load(block.best(r)), bounds) & ~block.top_lane[r];
    for (; lanes != 0; lanes &= lanes - 1) {
      const int lane = lowest_bit(lanes);
      int64_t panel = last_panel - first_panel - 1;
      while (!(block.rose[panel * block.rows + r] >> lane & 1)) --panel;
      Best best{out.distances[r], out.indices[r]};
      measure_lane<Simd, In>(book, block.raw[r], first_panel + panel, lane, best);
      best.write(out, r);
    }
    if (Simd::at_least(Simd::load(block.second(r)), bounds) != 0) {
      block.unsettled[block.num_unsettled++] = r;
    }
  }
}

// Second look at one panel, for a tile of unsettled rows: measures every code whose score reaches
// the bound.
template <class Simd, class In>
void measure_candidates(const Block<Simd>& block, const PackedBook<In>& book, int64_t tile,
                        int64_t panel, Nearest out) {
  using T = typename Simd::T;
  const int64_t dim = book.codes.dim;
  const int64_t first = tile * Simd::kTileRows;
  const int64_t last = smaller(first + Simd::kTileRows, block.num_unsettled);
  alignas(kAlignment) T scores[Simd::kTileRows * Simd::kTileCodes];
  store_scores<Simd>(scores, block.centred + first * block.row_stride, block.row_stride,
                     book.panels + panel * dim * Simd::kTileCodes,
                     book.start + panel * Simd::kTileCodes, dim);
  for (int64_t place = first; place < last; ++place) {
    const int64_t row = block.unsettled[place];
    const auto bounds = Simd::broadcast(block.bound[row]);
    Best best{out.distances[row], out.indices[row]};
    for (int j = 0; j < Simd::kTileVecs; ++j) {
      const T* score = scores + (place - first) * Simd::kTileCodes + j * Simd::kWidth;
      for (uint32_t lanes = Simd::at_least(Simd::load(score), bounds); lanes != 0;
           lanes &= lanes - 1) {
        const int64_t k = panel * Simd::kTileCodes + j * Simd::kWidth + lowest_bit(lanes);
        measure<Simd, In>(book, block.raw[row], k, best);
      }
    }
    best.write(out, row);
  }
}

template <class Simd, class In>
Best measure_every_code(const PackedBook<In>& book, const typename Simd::T* raw,
                        int64_t first_panel, int64_t last_panel) {
  Best best{kInfinity, kNoCode};
  const int64_t end = smaller(last_panel * Simd::kTileCodes, book.codes.count);
  for (int64_t k = first_panel * Simd::kTileCodes; k < end; ++k) {
    if (book.start[k] > -kInfinity) measure<Simd, In>(book, raw, k, best);
  }
  return best;
}

// ---- The whole search -----------------------------------------------------------------------

template <class Simd>
constexpr int64_t whole_tiles(int64_t rows) {
  return (rows + Simd::kTileRows - 1) / Simd::kTileRows;
}

// The ordinary rows of the block against panels [first, last), at most kPassPanels of them.
template <class Simd, class In>
void search_pass(Block<Simd>& block, const PackedBook<In>& book, int64_t count, int64_t first_panel,
                 int64_t last_panel, Nearest out) {
  using T = typename Simd::T;
  const int64_t dim = book.codes.dim;
  const int64_t tiles = whole_tiles<Simd>(count);
  const auto nothing = Simd::broadcast(-T(kInfinity));
  for (int64_t i = 0; i < tiles * Simd::kTileRows * Block<Simd>::kStateSize; i += Simd::kWidth) {
    Simd::store(block.state + i, nothing);
  }
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    keep_best<Simd>(block, tiles, book.panels + panel * dim * Simd::kTileCodes,
                    book.start + panel * Simd::kTileCodes, panel - first_panel, dim);
  }

  const ScoreBound<T> score_bound(dim, double(book.scale), book.max_norm);
  find_lanes<Simd>(block, score_bound, count, out);
  find_panels<Simd>(block, count, last_panel - first_panel);
  measure_tops<Simd, In>(block, book, count, first_panel, out);
  measure_others<Simd, In>(block, book, score_bound, count, first_panel, last_panel, out);
}

// The second look, at the rows that the first left open. It needs their places in `centred`.
template <class Simd, class In>
void settle(Block<Simd>& block, const PackedBook<In>& book, int64_t first_panel, int64_t last_panel,
            Nearest out) {
  const int64_t tiles = whole_tiles<Simd>(block.num_unsettled);
  for (int64_t i = 0; i < tiles * Simd::kTileRows; ++i) {
    if (i < block.num_unsettled) {
      centre_row(block, book, block.unsettled[i], i);
    } else {
      zero_row(block, book.codes.dim, i);
    }
  }
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    for (int64_t tile = 0; tile < tiles; ++tile) {
      measure_candidates<Simd, In>(block, book, tile, panel, out);
    }
  }
}

template <class Simd, class In>
void search_block(Block<Simd>& block, const PackedBook<In>& book, int64_t count,
                  int64_t first_panel, int64_t last_panel, Nearest out) {
  classify<Simd, In>(block, book, count);
  for (int64_t r = count; r < whole_tiles<Simd>(count) * Simd::kTileRows; ++r) {
    zero_row(block, book.codes.dim, r);
  }
  for (int64_t r = 0; r < count; ++r) {
    Best best{kInfinity, kNoCode};
    if (block.kind[r] == RowKind::kExhaustive) {
      best = measure_every_code<Simd, In>(book, block.raw[r], first_panel, last_panel);
    } else if (block.kind[r] == RowKind::kInfinite) {
      best = {kInfinity, book.first_usable};  // infinitely far from every code: a tie
    } else if (block.kind[r] == RowKind::kNan) {
      best = {kInfinity - kInfinity, 0};
    }
    best.write(out, r);
  }
  for (int64_t panel = first_panel; panel < last_panel; panel += kPassPanels) {
    const int64_t end = smaller(panel + kPassPanels, last_panel);
    search_pass<Simd, In>(block, book, count, panel, end, out);
    if (block.num_unsettled == 0) continue;
    settle<Simd, In>(block, book, panel, end, out);
    if (end < last_panel) classify<Simd, In>(block, book, count);  // its rows back in their places
  }
}

template <class Simd, class In>
void search(const PackedBook<In>& book, const Rows<const In>& z, int64_t first_row,
            int64_t last_row, int64_t first_panel, int64_t last_panel, void* scratch, Nearest out) {
  Block<Simd> block(z.dim, scratch);
  for (int64_t row = first_row; row < last_row; row += block.rows) {
    const int64_t count = smaller(block.rows, last_row - row);
    read_rows<Simd, In>(block, z, row, count);
    search_block<Simd, In>(block, book, count, first_panel, last_panel,
                           {out.indices + (row - first_row), out.distances + (row - first_row)});
  }
}

template <class Simd, class In>
constexpr Engine<In> make_engine() {
  return {Simd::kTileCodes, Simd::kTileRows, pack<Simd, In>, scratch_bytes<Simd>, search<Simd, In>};
}

template <class Simd32, class Simd64>
constexpr InstructionSet make_instruction_set(const char* name) {
  return {name, make_engine<Simd32, float>(), make_engine<Simd64, double>(),
          make_engine<Simd32, BFloat16>(), make_engine<Simd32, Half>()};
}

}  // namespace
}  // namespace vqvae_fast
