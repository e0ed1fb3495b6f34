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

template <class Simd, class In>
PackedRange pack(const PackedBook<In>& book, int64_t first, int64_t last) {
  using T = Compute<In>;
  constexpr int64_t width = Simd::kTileCodes;
  const Rows<const In>& codes = book.codes;
  const int64_t dim = codes.dim;
  PackedRange range{0.0, -1};
  for (int64_t panel = first; panel < last; ++panel) {
    T* out = book.panels + panel * dim * width;
    for (int64_t j = 0; j < width; ++j) {
      const int64_t k = panel * width + j;
      double square = kInfinity;
      if (k < codes.count) {
        const In* code = codes.row(k);
        square = sum_of_squares(dim, [&](int64_t d) {
          const T e = widen(code[d * codes.element_stride]) * book.scale - book.centre[d];
          out[d * width + j] = e;
          return double(e);
        });
      }
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
  T* raw;              // [rows][D]: the rows as they are
  T* centred;          // [rows][row_stride]: centred and scaled
  T* state;            // [rows][2][kWidth]
  Mask* rose;          // [kPassPanels][rows]
  double* square;      // [rows]: |z|^2, centred and scaled
  RowKind* kind;       // [rows]
  int64_t* unsettled;  // [num_unsettled]: rows that the first look at a pass cannot settle,
  T* bound;            // [num_unsettled]: and the score below which a code cannot be the nearest
  int64_t rows;
  int64_t num_unsettled;

  Block(int64_t dim, void* scratch) : rows(block_rows<Simd>(dim)), num_unsettled(0) {
    // A line between the rows keeps those of a power of two out of each other's cache sets.
    constexpr int64_t line = kAlignment / int64_t(sizeof(T));
    row_stride = (dim + line - 1) / line * line + line;
    at_ = begin_ = reinterpret_cast<uintptr_t>(scratch);
    raw = take<T>(rows * dim);
    centred = take<T>(rows * row_stride);
    state = take<T>(rows * kStateSize);
    rose = take<Mask>(kPassPanels * rows);
    square = take<double>(rows);
    kind = take<RowKind>(rows);
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

// Copies rows [first, first + count) as they are. Feature maps are read along their rows.
template <class Simd, class In>
void read_rows(Block<Simd>& block, const Rows<const In>& z, int64_t first, int64_t count) {
  const int64_t dim = z.dim;
  if (z.element_stride == 1) {
    for (int64_t r = 0; r < count; ++r) {
      const In* row = z.row(first + r);
      for (int64_t d = 0; d < dim; ++d) block.raw[r * dim + d] = widen(row[d]);
    }
    return;
  }
  const In* rows[kMaxRows];
  for (int64_t r = 0; r < count; ++r) rows[r] = z.row(first + r);
  for (int64_t d = 0; d < dim; ++d) {
    const int64_t offset = d * z.element_stride;
    for (int64_t r = 0; r < count; ++r) block.raw[r * dim + d] = widen(rows[r][offset]);
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

// Rows whose scores could overflow, or that are not finite, take another way.
template <class Simd, class In>
void classify(Block<Simd>& block, const PackedBook<In>& book, int64_t count) {
  using T = typename Simd::T;
  const int64_t dim = book.codes.dim;
  const bool long_rows = too_long<T>(dim);
  for (int64_t r = 0; r < count; ++r) {
    const T* raw = block.raw + r * dim;
    block.square[r] = sum_of_squares(dim, [&](int64_t d) {
      return double(raw[d]) * double(book.scale) - double(book.centre[d]);
    });
    const double norm = sqrt(block.square[r]) + book.max_norm;
    const bool ordinary = norm * (1 + norm) < Precision<T>::largest && !long_rows;
    block.kind[r] = ordinary ? RowKind::kOrdinary : unusual_kind(raw, dim);
  }
}

// Centres row `from` of the block into place `to`; rows that are not searched give zeros.
template <class Simd, class In>
void centre_row(Block<Simd>& block, const PackedBook<In>& book, int64_t from, int64_t to) {
  using T = typename Simd::T;
  const int64_t dim = book.codes.dim;
  T* out = block.centred + to * block.row_stride;
  if (from < 0 || block.kind[from] != RowKind::kOrdinary) {
    for (int64_t d = 0; d < dim; ++d) out[d] = 0;
    return;
  }
  const T* raw = block.raw + from * dim;
  for (int64_t d = 0; d < dim; ++d) out[d] = raw[d] * book.scale - book.centre[d];
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

// The nearest code of a row so far; index -1 where there is none yet.
struct Best {
  double& distance;
  int64_t& index;
};

template <class In>
inline void measure(const PackedBook<In>& book, const Compute<In>* raw, int64_t k, Best best) {
  const Rows<const In>& codes = book.codes;
  const double d = distance<In>(raw, codes.row(k), codes.element_stride, codes.dim);
  if (best.index < 0 || d < best.distance || (d == best.distance && k < best.index)) {
    best.distance = d;
    best.index = k;
  }
}

// Measures the codes among which the best score of this lane was found: those of the last panel
// at which it rose.
template <class Simd, class In>
void measure_lane(const Block<Simd>& block, const PackedBook<In>& book, int64_t row,
                  int64_t first_panel, int64_t last_panel, int lane, Best best) {
  int64_t panel = last_panel - first_panel - 1;
  while (!(block.rose[panel * block.rows + row] >> lane & 1)) --panel;
  const int64_t base = (first_panel + panel) * Simd::kTileCodes + lane;
  for (int j = 0; j < Simd::kTileVecs; ++j) {
    const int64_t k = base + j * Simd::kWidth;
    if (book.start[k] > -kInfinity) {
      measure<In>(book, block.raw + row * book.codes.dim, k, best);
    }
  }
}

// Measures the candidates of one row in panels [first, last). Where the second best of a lane may
// win too, nobody knows which code that was: the row goes to the unsettled ones.
template <class Simd, class In>
void resolve(Block<Simd>& block, const PackedBook<In>& book, int64_t row, int64_t first_panel,
             int64_t last_panel, Best best) {
  using T = typename Simd::T;
  const auto scores = Simd::load(block.best(row));
  const T top = Simd::reduce_max(scores);
  const bool settled_before =
      best.index >= 0 && top < score_bound(book, block.square[row], best.distance);
  if (settled_before || !(top > -T(kInfinity))) return;

  const int top_lane = lowest_bit(Simd::at_least(scores, Simd::broadcast(top)));
  measure_lane<Simd, In>(block, book, row, first_panel, last_panel, top_lane, best);
  const T bound = score_bound(book, block.square[row], best.distance);
  const auto bounds = Simd::broadcast(bound);
  uint32_t lanes = Simd::at_least(scores, bounds) & ~(uint32_t{1} << top_lane);
  for (; lanes != 0; lanes &= lanes - 1) {
    measure_lane<Simd, In>(block, book, row, first_panel, last_panel, lowest_bit(lanes), best);
  }
  if (Simd::at_least(Simd::load(block.second(row)), bounds) != 0) {
    block.bound[block.num_unsettled] = bound;
    block.unsettled[block.num_unsettled++] = row;
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
    const auto bounds = Simd::broadcast(block.bound[place]);
    for (int j = 0; j < Simd::kTileVecs; ++j) {
      const T* score = scores + (place - first) * Simd::kTileCodes + j * Simd::kWidth;
      for (uint32_t lanes = Simd::at_least(Simd::load(score), bounds); lanes != 0;
           lanes &= lanes - 1) {
        const int64_t k = panel * Simd::kTileCodes + j * Simd::kWidth + lowest_bit(lanes);
        measure<In>(book, block.raw + row * dim, k, {out.distances[row], out.indices[row]});
      }
    }
  }
}

template <class Simd, class In>
void measure_every_code(const PackedBook<In>& book, const typename Simd::T* raw,
                        int64_t first_panel, int64_t last_panel, Best best) {
  const int64_t end = smaller(last_panel * Simd::kTileCodes, book.codes.count);
  for (int64_t k = first_panel * Simd::kTileCodes; k < end; ++k) {
    if (book.start[k] > -kInfinity) measure<In>(book, raw, k, best);
  }
}

// ---- The whole search -----------------------------------------------------------------------

// The ordinary rows of the block against panels [first, last), at most kPassPanels of them.
template <class Simd, class In>
void search_pass(Block<Simd>& block, const PackedBook<In>& book, int64_t count, int64_t first_panel,
                 int64_t last_panel, Nearest out) {
  using T = typename Simd::T;
  const int64_t dim = book.codes.dim;
  const auto tiles = [](int64_t rows) { return (rows + Simd::kTileRows - 1) / Simd::kTileRows; };

  for (int64_t r = 0; r < tiles(count) * Simd::kTileRows; ++r) {
    centre_row<Simd, In>(block, book, r < count ? r : -1, r);
    for (int64_t i = 0; i < Block<Simd>::kStateSize; ++i) block.best(r)[i] = -T(kInfinity);
  }
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    keep_best<Simd>(block, tiles(count), book.panels + panel * dim * Simd::kTileCodes,
                    book.start + panel * Simd::kTileCodes, panel - first_panel, dim);
  }

  block.num_unsettled = 0;
  for (int64_t r = 0; r < count; ++r) {
    if (block.kind[r] == RowKind::kOrdinary) {
      resolve<Simd, In>(block, book, r, first_panel, last_panel,
                        {out.distances[r], out.indices[r]});
    }
  }
  if (block.num_unsettled == 0) return;

  const int64_t unsettled_tiles = tiles(block.num_unsettled);
  for (int64_t i = 0; i < unsettled_tiles * Simd::kTileRows; ++i) {
    centre_row<Simd, In>(block, book, i < block.num_unsettled ? block.unsettled[i] : -1, i);
  }
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    for (int64_t tile = 0; tile < unsettled_tiles; ++tile) {
      measure_candidates<Simd, In>(block, book, tile, panel, out);
    }
  }
}

template <class Simd, class In>
void search_block(Block<Simd>& block, const PackedBook<In>& book, int64_t count,
                  int64_t first_panel, int64_t last_panel, Nearest out) {
  classify<Simd, In>(block, book, count);
  for (int64_t r = 0; r < count; ++r) {
    out.indices[r] = -1;
    out.distances[r] = kInfinity;
    switch (block.kind[r]) {
      case RowKind::kOrdinary:
        break;
      case RowKind::kExhaustive:
        measure_every_code<Simd, In>(book, block.raw + r * book.codes.dim, first_panel, last_panel,
                                     {out.distances[r], out.indices[r]});
        break;
      case RowKind::kInfinite:  // infinitely far from every code: a tie
        out.indices[r] = book.first_usable;
        break;
      case RowKind::kNan:
        out.indices[r] = 0;
        out.distances[r] = kInfinity - kInfinity;
        break;
    }
  }
  for (int64_t panel = first_panel; panel < last_panel; panel += kPassPanels) {
    search_pass<Simd, In>(block, book, count, panel, smaller(panel + kPassPanels, last_panel), out);
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
