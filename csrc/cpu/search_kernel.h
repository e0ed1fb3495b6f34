// The fused search, once for all instruction sets: each search_*.cpp supplies a Simd type
// (vector, width, tile shape) and instantiates it. Unnamed namespace and no standard library:
// nothing compiled here may be shared with code built for a lesser machine.
#pragma once

#include <math.h>
#include <stdint.h>

#include "contract.h"
#include "elements.h"

// Loops over a tile must be unrolled before the compiler decides what lives in registers: left to
// itself, GCC unrolls them too late and sends every accumulator through the stack.
#if defined(__GNUC__)
#define VQVAE_FAST_UNROLL _Pragma("GCC unroll 8")
#else
#define VQVAE_FAST_UNROLL
#endif

namespace vqvae_fast {
namespace {

// Rows whose running best stays in L1 while the panels stream by: this many at most, and fewer
// where D is so large that the rows themselves would fill the L2.
constexpr int64_t kBlockRows = 64;
constexpr int64_t kBlockBytes = int64_t{1} << 19;
constexpr double kInfinity = HUGE_VAL;

template <class T>
struct Precision;
template <>
struct Precision<float> {
  static constexpr double unit = 0x1p-24;     // half an ulp of 1
  static constexpr double tiny = 0x1p-149;    // the smallest subnormal
  static constexpr double largest = 0x1p120;  // scores stay below this, well short of overflow
};
template <>
struct Precision<double> {
  static constexpr double unit = 0x1p-53;
  static constexpr double tiny = 0x1p-1074;
  static constexpr double largest = 0x1p1000;
};

inline double smaller(double a, double b) { return a < b ? a : b; }
inline double larger(double a, double b) { return a > b ? a : b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// sum((z - e)^2) in float64, in one fixed order, so that every instruction set gets the same bits
// (the files are compiled without contraction of a*b+c).
template <class In>
double distance(const Compute<In>* z, const In* code, int64_t element_stride, int64_t dim) {
  constexpr int kLanes = 8;
  double lane[kLanes] = {};
  int64_t d = 0;
  if (element_stride == 1) {
    for (; d + kLanes <= dim; d += kLanes) {
      for (int l = 0; l < kLanes; ++l) {
        const double difference = double(z[d + l]) - double(widen(code[d + l]));
        lane[l] += difference * difference;
      }
    }
  }
  for (; d < dim; ++d) {
    const double difference = double(z[d]) - double(widen(code[d * element_stride]));
    lane[d % kLanes] += difference * difference;
  }
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
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
        square = 0.0;
        for (int64_t d = 0; d < dim; ++d) {
          const T e = widen(code[d * codes.element_stride]) * book.scale - book.centre[d];
          out[d * width + j] = e;
          square += double(e) * double(e);
        }
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

// Scratch of one thread. Per row and lane: best score, the panel it came from (a whole number in
// T, so that one blend moves it), and the best score that is not the best.
template <class Simd>
struct Block {
  using T = typename Simd::T;
  static constexpr int64_t kStateSize = 3 * Simd::kWidth;

  T* raw;                     // [kBlockRows][D]: the rows as they are
  T* tiles;                   // [kBlockRows / kTileRows][D][kTileRows]: centred and scaled
  T* state;                   // [kBlockRows][3][kWidth]
  double square[kBlockRows];  // |z|^2, centred and scaled
  RowKind kind[kBlockRows];
  // Rows that the first pass cannot settle.
  int64_t unsettled[kBlockRows];
  T threshold[kBlockRows];
  int64_t num_unsettled;

  T* best(int64_t row) { return state + row * kStateSize; }
  T* panel(int64_t row) { return best(row) + Simd::kWidth; }
  T* second(int64_t row) { return panel(row) + Simd::kWidth; }
};

constexpr int64_t kAlignment = 64;
inline int64_t align(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

template <class Simd>
int64_t block_rows(int64_t dim) {
  const int64_t fitting = kBlockBytes / (dim * int64_t(sizeof(typename Simd::T)));
  const int64_t tiles = smaller(fitting, kBlockRows) / Simd::kTileRows;
  return tiles < 1 ? Simd::kTileRows : tiles * Simd::kTileRows;
}

template <class Simd>
int64_t scratch_bytes(int64_t dim) {
  using T = typename Simd::T;
  const int64_t rows = align(block_rows<Simd>(dim) * dim * int64_t(sizeof(T)));
  return align(sizeof(Block<Simd>)) + 2 * rows +
         align(kBlockRows * Block<Simd>::kStateSize * int64_t(sizeof(T)));
}

template <class Simd>
Block<Simd>& lay_out(void* scratch, int64_t dim) {
  using T = typename Simd::T;
  char* at = static_cast<char*>(scratch);
  Block<Simd>& block = *reinterpret_cast<Block<Simd>*>(at);
  at += align(sizeof(Block<Simd>));
  const int64_t rows = align(block_rows<Simd>(dim) * dim * int64_t(sizeof(T)));
  block.raw = reinterpret_cast<T*>(at);
  block.tiles = reinterpret_cast<T*>(at + rows);
  block.state = reinterpret_cast<T*>(at + 2 * rows);
  return block;
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
  const In* rows[kBlockRows];
  for (int64_t r = 0; r < count; ++r) rows[r] = z.row(first + r);
  for (int64_t d = 0; d < dim; ++d) {
    const int64_t offset = d * z.element_stride;
    for (int64_t r = 0; r < count; ++r) block.raw[r * dim + d] = widen(rows[r][offset]);
  }
}

// Writes row `from` of the block into place `to` of the tiles; a negative `from` gives zeros.
template <class Simd, class In>
void tile_row(Block<Simd>& block, const PackedBook<In>& book, int64_t from, int64_t to) {
  using T = typename Simd::T;
  constexpr int64_t rows = Simd::kTileRows;
  const int64_t dim = book.codes.dim;
  T* out = block.tiles + to / rows * rows * dim + to % rows;
  if (from < 0 || block.kind[from] != RowKind::kOrdinary) {
    for (int64_t d = 0; d < dim; ++d) out[d * rows] = 0;
    return;
  }
  const T* raw = block.raw + from * dim;
  for (int64_t d = 0; d < dim; ++d) out[d * rows] = raw[d] * book.scale - book.centre[d];
}

template <class Simd, class In>
void classify(Block<Simd>& block, const PackedBook<In>& book, int64_t count) {
  using T = typename Simd::T;
  const int64_t dim = book.codes.dim;
  const double gamma = double(dim + 8) * Precision<T>::unit;
  for (int64_t r = 0; r < count; ++r) {
    const T* raw = block.raw + r * dim;
    double square = 0.0;
    T largest = 0;
    bool nan = false;
    for (int64_t d = 0; d < dim; ++d) {
      const double z = double(raw[d]) * double(book.scale) - double(book.centre[d]);
      square += z * z;
      const T magnitude = raw[d] < 0 ? -raw[d] : raw[d];
      largest = magnitude > largest ? magnitude : largest;
      nan |= raw[d] != raw[d];
    }
    block.square[r] = square;
    const double reach = (sqrt(square) + book.max_norm) * (1 + book.max_norm);
    block.kind[r] = nan                                                ? RowKind::kNan
                    : largest == T(kInfinity)                          ? RowKind::kInfinite
                    : !(reach < Precision<T>::largest) || gamma > 0.01 ? RowKind::kExhaustive
                                                                       : RowKind::kOrdinary;
  }
}

// ---- The inner loops ------------------------------------------------------------------------

// Scores of one tile: kTileRows rows against one panel.
template <class Simd>
struct Scores {
  typename Simd::Vec at[Simd::kTileRows][Simd::kTileVecs];
};

template <class Simd>
inline void score_tile(Scores<Simd>& scores, const typename Simd::T* rows,
                       const typename Simd::T* panel, const typename Simd::T* start, int64_t dim) {
  using Vec = typename Simd::Vec;
  VQVAE_FAST_UNROLL
  for (int j = 0; j < Simd::kTileVecs; ++j) {
    const Vec s = Simd::load(start + j * Simd::kWidth);
    VQVAE_FAST_UNROLL
    for (int i = 0; i < Simd::kTileRows; ++i) scores.at[i][j] = s;
  }
  for (int64_t d = 0; d < dim; ++d) {
    Vec codes[Simd::kTileVecs];
    VQVAE_FAST_UNROLL
    for (int j = 0; j < Simd::kTileVecs; ++j) codes[j] = Simd::load(panel + j * Simd::kWidth);
    VQVAE_FAST_UNROLL
    for (int i = 0; i < Simd::kTileRows; ++i) {
      const Vec z = Simd::broadcast(rows[i]);
      VQVAE_FAST_UNROLL
      for (int j = 0; j < Simd::kTileVecs; ++j) {
        scores.at[i][j] = Simd::multiply_add(z, codes[j], scores.at[i][j]);
      }
    }
    panel += Simd::kTileCodes;
    rows += Simd::kTileRows;
  }
}

// First pass over one tile. The codes of a panel that share a lane are reduced to their maximum
// before they meet the running best: the lane remembers the panel, and resolve() measures all of
// them. So a vector of scores costs 7/3 instructions, the second best included.
template <class Simd>
void keep_best(Block<Simd>& block, int64_t tile, const typename Simd::T* panel,
               const typename Simd::T* start, typename Simd::T panel_number, int64_t dim) {
  using Vec = typename Simd::Vec;
  Scores<Simd> scores;
  score_tile<Simd>(scores, block.tiles + tile * Simd::kTileRows * dim, panel, start, dim);
  const Vec number = Simd::broadcast(panel_number);
  typename Simd::T* state = block.best(tile * Simd::kTileRows);
  VQVAE_FAST_UNROLL
  for (int i = 0; i < Simd::kTileRows; ++i, state += Block<Simd>::kStateSize) {
    Vec top = scores.at[i][0];
    VQVAE_FAST_UNROLL
    for (int j = 1; j < Simd::kTileVecs; ++j) top = Simd::max(top, scores.at[i][j]);
    const Vec best = Simd::load(state);
    const Vec second = Simd::load(state + 2 * Simd::kWidth);
    const Vec from = Simd::load(state + Simd::kWidth);
    Simd::store(state, Simd::max(best, top));
    Simd::store(state + Simd::kWidth, Simd::where_greater(top, best, number, from));
    Simd::store(state + 2 * Simd::kWidth, Simd::max(second, Simd::min(top, best)));
  }
}

// ---- From scores to the exact answer --------------------------------------------------------

template <class In>
void measure(const PackedBook<In>& book, const Compute<In>* raw, int64_t k, double& nearest,
             int64_t& index) {
  const Rows<const In>& codes = book.codes;
  const double d = distance<In>(raw, codes.row(k), codes.element_stride, codes.dim);
  if (index < 0 || d < nearest || (d == nearest && k < index)) {
    nearest = d;
    index = k;
  }
}

// The score below which no code can be as near as `nearest`: the exact score of that distance,
// less the largest error of a computed score. Only codes with |e| <= |z| + sqrt(nearest) can be
// that near, so one far-off code does not widen the bound. See docs/exactness.md.
template <class Simd, class In>
typename Simd::T score_bound(const PackedBook<In>& book, double square, double nearest) {
  using T = typename Simd::T;
  const double dim = double(book.codes.dim);
  const double scale = double(book.scale);
  const double scaled = nearest * scale * scale;
  const double norm = sqrt(square);
  const double radius = smaller(book.max_norm, norm + sqrt(scaled));
  const double gamma = 1.02 * (dim + 8) * Precision<T>::unit;
  const double score_error = gamma * (norm * radius + 0.5 * radius * radius) +
                             Precision<T>::tiny * (2 * dim + 2 * dim * (norm + radius));
  const double distance_error = (dim + 16) * 0x1p-52 * (square + scaled);
  const double bound = 0.5 * (square - scaled) - score_error - distance_error;
  // Rounded to T it may have risen; one more unit in the last place makes up for it.
  return T(bound - 2 * Precision<T>::unit * fabs(bound));
}

template <class Simd, class In>
void measure_lane(const PackedBook<In>& book, const typename Simd::T* raw, int64_t first_panel,
                  double panel, int lane, double& nearest, int64_t& index) {
  const int64_t base = (first_panel + int64_t(panel)) * Simd::kTileCodes + lane;
  for (int j = 0; j < Simd::kTileVecs; ++j) {
    const int64_t k = base + j * Simd::kWidth;
    if (book.start[k] > -kInfinity) measure<In>(book, raw, k, nearest, index);
  }
}

// Measures the candidates of one row. Where a lane's second best may win too, the first pass does
// not know which code that was: the row goes to the unsettled ones.
template <class Simd, class In>
void resolve(Block<Simd>& block, const PackedBook<In>& book, int64_t row, int64_t first_panel,
             double& nearest, int64_t& index) {
  using T = typename Simd::T;
  const T* best = block.best(row);
  const T* panel = block.panel(row);
  const T* second = block.second(row);
  int top = 0;
  T runner_up = second[0];
  for (int lane = 1; lane < Simd::kWidth; ++lane) {
    top = best[lane] > best[top] ? lane : top;
    runner_up = second[lane] > runner_up ? second[lane] : runner_up;
  }
  if (!(best[top] > -T(kInfinity))) return;  // no usable code in these panels
  const T* raw = block.raw + row * book.codes.dim;
  measure_lane<Simd, In>(book, raw, first_panel, panel[top], top, nearest, index);
  const T bound = score_bound<Simd, In>(book, block.square[row], nearest);
  for (int lane = 0; lane < Simd::kWidth; ++lane) {
    if (lane != top && best[lane] >= bound) {
      measure_lane<Simd, In>(book, raw, first_panel, panel[lane], lane, nearest, index);
    }
  }
  if (runner_up >= bound) {
    block.threshold[block.num_unsettled] = bound;
    block.unsettled[block.num_unsettled++] = row;
  }
}

template <class Simd>
void store_scores(typename Simd::T* out, const typename Simd::T* rows,
                  const typename Simd::T* panel, const typename Simd::T* start, int64_t dim) {
  Scores<Simd> scores;
  score_tile<Simd>(scores, rows, panel, start, dim);
  VQVAE_FAST_UNROLL
  for (int i = 0; i < Simd::kTileRows; ++i) {
    VQVAE_FAST_UNROLL
    for (int j = 0; j < Simd::kTileVecs; ++j) {
      Simd::store(out + i * Simd::kTileCodes + j * Simd::kWidth, scores.at[i][j]);
    }
  }
}

// Second pass over one tile of unsettled rows: measures every code whose score reaches the bound.
template <class Simd, class In>
void measure_all(Block<Simd>& block, const PackedBook<In>& book, int64_t tile, int64_t panel,
                 Nearest out) {
  using T = typename Simd::T;
  const int64_t dim = book.codes.dim;
  alignas(kAlignment) T scores[Simd::kTileRows * Simd::kTileCodes];
  store_scores<Simd>(scores, block.tiles + tile * Simd::kTileRows * dim,
                     book.panels + panel * dim * Simd::kTileCodes,
                     book.start + panel * Simd::kTileCodes, dim);
  const int64_t first = tile * Simd::kTileRows;
  const int64_t last = smaller(first + Simd::kTileRows, block.num_unsettled);
  for (int64_t place = first; place < last; ++place) {
    const T* score = scores + (place - first) * Simd::kTileCodes;
    const T threshold = block.threshold[place];
    typename Simd::Vec top = Simd::load(score);
    for (int j = 1; j < Simd::kTileVecs; ++j) {
      top = Simd::max(top, Simd::load(score + j * Simd::kWidth));
    }
    if (!Simd::any_at_least(top, Simd::broadcast(threshold))) continue;
    const int64_t row = block.unsettled[place];
    for (int j = 0; j < Simd::kTileCodes; ++j) {
      if (score[j] >= threshold) {
        measure<In>(book, block.raw + row * dim, panel * Simd::kTileCodes + j, out.distances[row],
                    out.indices[row]);
      }
    }
  }
}

template <class Simd, class In>
void measure_every_code(const PackedBook<In>& book, const typename Simd::T* raw,
                        int64_t first_panel, int64_t last_panel, double& nearest, int64_t& index) {
  const int64_t end = smaller(last_panel * Simd::kTileCodes, book.codes.count);
  for (int64_t k = first_panel * Simd::kTileCodes; k < end; ++k) {
    if (book.start[k] > -kInfinity) measure<In>(book, raw, k, nearest, index);
  }
}

// ---- The whole search -----------------------------------------------------------------------

template <class Simd, class In>
void search_block(Block<Simd>& block, const PackedBook<In>& book, int64_t count,
                  int64_t first_panel, int64_t last_panel, Nearest out) {
  using T = typename Simd::T;
  constexpr int64_t tile_rows = Simd::kTileRows;
  const int64_t dim = book.codes.dim;
  const int64_t panel_size = dim * Simd::kTileCodes;
  const auto padded = [](int64_t rows) { return (rows + tile_rows - 1) / tile_rows * tile_rows; };

  classify<Simd, In>(block, book, count);
  for (int64_t r = 0; r < padded(count); ++r) {
    tile_row<Simd, In>(block, book, r < count ? r : -1, r);
    for (int64_t i = 0; i < Block<Simd>::kStateSize; ++i) block.best(r)[i] = -T(kInfinity);
  }
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    for (int64_t tile = 0; tile < padded(count) / tile_rows; ++tile) {
      keep_best<Simd>(block, tile, book.panels + panel * panel_size,
                      book.start + panel * Simd::kTileCodes, T(panel - first_panel), dim);
    }
  }

  block.num_unsettled = 0;
  for (int64_t r = 0; r < count; ++r) {
    double& nearest = out.distances[r] = kInfinity;
    int64_t& index = out.indices[r] = -1;
    const T* raw = block.raw + r * dim;
    switch (block.kind[r]) {
      case RowKind::kOrdinary:
        resolve<Simd, In>(block, book, r, first_panel, nearest, index);
        break;
      case RowKind::kExhaustive:
        measure_every_code<Simd, In>(book, raw, first_panel, last_panel, nearest, index);
        break;
      case RowKind::kInfinite:  // infinitely far from every code: a tie
        index = book.first_usable;
        break;
      case RowKind::kNan:
        index = 0;
        nearest = kInfinity - kInfinity;
        break;
    }
  }

  if (block.num_unsettled == 0) return;
  const int64_t rows = padded(block.num_unsettled);
  for (int64_t i = 0; i < rows; ++i) {
    tile_row<Simd, In>(block, book, i < block.num_unsettled ? block.unsettled[i] : -1, i);
  }
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    for (int64_t tile = 0; tile < rows / tile_rows; ++tile) {
      measure_all<Simd, In>(block, book, tile, panel, out);
    }
  }
}

template <class Simd, class In>
void search(const PackedBook<In>& book, const Rows<const In>& z, int64_t first_row,
            int64_t last_row, int64_t first_panel, int64_t last_panel, void* scratch, Nearest out) {
  Block<Simd>& block = lay_out<Simd>(scratch, z.dim);
  const int64_t step = block_rows<Simd>(z.dim);
  for (int64_t row = first_row; row < last_row; row += step) {
    const int64_t count = smaller(step, last_row - row);
    read_rows<Simd, In>(block, z, row, count);
    search_block<Simd, In>(block, book, count, first_panel, last_panel,
                           {out.indices + (row - first_row), out.distances + (row - first_row)});
  }
}

template <class Simd, class In>
constexpr Engine<In> make_engine() {
  static_assert(kBlockRows % Simd::kTileRows == 0, "a block must be whole tiles");
  return {Simd::kTileCodes, Simd::kTileRows, pack<Simd, In>, scratch_bytes<Simd>, search<Simd, In>};
}

template <class Simd32, class Simd64>
constexpr InstructionSet make_instruction_set(const char* name) {
  return {name, make_engine<Simd32, float>(), make_engine<Simd64, double>(),
          make_engine<Simd32, BFloat16>(), make_engine<Simd32, Half>()};
}

}  // namespace
}  // namespace vqvae_fast
