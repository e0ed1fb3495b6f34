// Searches by measuring every code in float64, without scores that rule codes out. That is quickest
// for short codes, if the codebook is small or the rows are few.
#pragma once

#include <stdint.h>

#include "../../elements.h"
#include "../../score_bound.h"
#include "../contract.h"

namespace vqvae_fast {
namespace {

// So many rows meet each code at once, in the lanes of float64.
constexpr int64_t kRowLanes = 8;

// Keeps the nearer of two codes for each lane: the former if both are equally near, or if the
// distance of the latter is NaN. An instruction set may have a quicker form.
template <class Doubles>
VQVAE_FAST_INLINE void keep_nearer(typename Doubles::Vec& nearest, typename Doubles::Vec& index,
                                   typename Doubles::Vec distance,
                                   typename Doubles::Vec its_index) {
  if constexpr (requires { Doubles::keep_nearer(nearest, index, distance, its_index); }) {
    Doubles::keep_nearer(nearest, index, distance, its_index);
  } else {
    double former[kRowLanes], indices[kRowLanes], latter[kRowLanes], its_indices[kRowLanes];
    Doubles::store(former, nearest);
    Doubles::store(indices, index);
    Doubles::store(latter, distance);
    Doubles::store(its_indices, its_index);
    for (int l = 0; l < kRowLanes; ++l) {
      indices[l] = latter[l] < former[l] ? its_indices[l] : indices[l];
      former[l] = latter[l] < former[l] ? latter[l] : former[l];
    }
    nearest = Doubles::load(former);
    index = Doubles::load(indices);
  }
}

// Adds the squared differences of dimensions kFirst, kFirst + kStep, ... in the order of measure(),
// so that distances have the same bits. measure() has eight sums, each of every eighth dimension,
// and Doubles::sum() halves them three times. kDim: the number of dimensions if it is at most
// eight, else 0.
template <class Doubles, int kDim, int kFirst, int kStep, class Difference>
VQVAE_FAST_INLINE typename Doubles::Vec add_dimensions(int64_t dim, const Difference& difference) {
  if constexpr (kStep == 8) {
    const auto first = difference(kFirst);
    auto sum = Doubles::multiply(first, first);
    if constexpr (kDim == 0) {
      for (int64_t d = kFirst + 8; d < dim; d += 8) sum = Doubles::add_square(sum, difference(d));
    }
    return sum;
  } else {
    const auto sum = add_dimensions<Doubles, kDim, kFirst, 2 * kStep>(dim, difference);
    if constexpr (kDim != 0 && kFirst + kStep >= kDim) {
      return sum;  // measure() adds zeros for the dimensions that are missing
    } else {
      return Doubles::add(
          sum, add_dimensions<Doubles, kDim, kFirst + kStep, 2 * kStep>(dim, difference));
    }
  }
}

// What is known of eight rows: their elements, [dim][8], and their nearest codes so far.
struct MeasuredRows {
  double elements[kLongestMeasured * kRowLanes];
  double nearest[kRowLanes], index[kRowLanes];
};

// Lets eight rows meet `count` codes: [count][dim].
template <class Doubles, int kDim>
VQVAE_FAST_ALONE void measure_codes(MeasuredRows& rows, int64_t dim, const double* codes,
                                    int64_t first_code, int64_t count) {
  using Vec = typename Doubles::Vec;
  Vec elements[kDim == 0 ? 1 : kDim];
  VQVAE_FAST_UNROLL
  for (int d = 0; d < kDim; ++d) elements[d] = Doubles::load(rows.elements + d * kRowLanes);
  Vec nearest = Doubles::load(rows.nearest), index = Doubles::load(rows.index);
  Vec its_index = Doubles::broadcast(double(first_code));
  const double* const end = codes + count * dim;
  for (const double* code = codes; code < end; code += kDim == 0 ? dim : kDim) {
    const auto difference = [&](int64_t d) {
      const Vec z =
          kDim == 0 ? Doubles::load(rows.elements + d * kRowLanes) : elements[kDim == 0 ? 0 : d];
      return Doubles::subtract(z, Doubles::broadcast(code[d]));
    };
    const Vec distance = add_dimensions<Doubles, kDim, 0, 1>(dim, difference);
    keep_nearer<Doubles>(nearest, index, distance, its_index);
    its_index = Doubles::add(its_index, Doubles::broadcast(1));
  }
  Doubles::store(rows.nearest, nearest);
  Doubles::store(rows.index, index);
}

// Returns measure_codes for codes of this length.
template <class Doubles>
inline auto measure_codes_of(int64_t dim) {
  constexpr decltype(&measure_codes<Doubles, 0>) kOfLength[] = {
      measure_codes<Doubles, 0>, measure_codes<Doubles, 1>, measure_codes<Doubles, 2>,
      measure_codes<Doubles, 3>, measure_codes<Doubles, 4>, measure_codes<Doubles, 5>,
      measure_codes<Doubles, 6>, measure_codes<Doubles, 7>, measure_codes<Doubles, 8>};
  return kOfLength[dim <= 8 ? dim : 0];
}

// Writes codes [first, last) as float64 to out: [code][dim].
template <class In>
VQVAE_FAST_ALONE void widen_codes(const Codes<In>& codes, int64_t first, int64_t last,
                                  double* out) {
  if (codes.element_stride == 1 && codes.row_stride == codes.dim) {
    const In* elements = codes.row(first);
    for (int64_t i = 0; i < (last - first) * codes.dim; ++i) out[i] = double(widen(elements[i]));
    return;
  }
  for (int64_t k = first; k < last; ++k) {
    const In* code = codes.row(k);
    for (int64_t d = 0; d < codes.dim; ++d) *out++ = double(widen(code[d * codes.element_stride]));
  }
}

// Reads rows [first, first + count) into eight lanes; the last row fills those that are left.
template <class In>
inline void read_lanes(const Rows<const In>& z, int64_t first, int64_t count, MeasuredRows& rows) {
  for (int64_t lane = 0; lane < kRowLanes; ++lane) {
    const In* row = z.row(first + smaller(lane, count - 1));
    for (int64_t d = 0; d < z.dim; ++d) {
      rows.elements[d * kRowLanes + lane] = double(widen(row[d * z.element_stride]));
    }
    rows.nearest[lane] = kInfinity;
    rows.index[lane] = 0;
  }
}

// Finds the nearest among codes [first_code, last_code) for rows [first_row, last_row), whose
// length is at most kLongestMeasured. Writes at [row - first_row]. Returns false, and `out` then
// has no meaning, if `search` must serve: a row has no code at a finite distance.
template <class Simd, class In>
bool measure_all(const Codes<In>& codes, const Rows<const In>& z, int64_t first_row,
                 int64_t last_row, int64_t first_code, int64_t last_code, Nearest out) {
  constexpr int64_t kBlockGroups = 8, kBlockRows = kBlockGroups * kRowLanes;
  constexpr int64_t kElements = 1 << 11;  // of the codes that a block meets in the L1 cache
  MeasuredRows block[kBlockGroups];
  alignas(kAlignment) double chunk[kElements];
  const int64_t chunk_codes = kElements / z.dim;
  const auto measure = measure_codes_of<typename Simd::Doubles>(z.dim);
  for (int64_t row = first_row; row < last_row; row += kBlockRows) {
    const int64_t count = smaller(kBlockRows, last_row - row);
    const int64_t groups = (count + kRowLanes - 1) / kRowLanes;
    for (int64_t g = 0; g < groups; ++g) {
      read_lanes(z, row + g * kRowLanes, smaller(kRowLanes, count - g * kRowLanes), block[g]);
    }
    for (int64_t first = first_code; first < last_code; first += chunk_codes) {
      const int64_t last = smaller(first + chunk_codes, last_code);
      widen_codes(codes, first, last, chunk);
      for (int64_t g = 0; g < groups; ++g) measure(block[g], z.dim, chunk, first, last - first);
    }
    for (int64_t r = 0; r < count; ++r) {
      const MeasuredRows& rows = block[r / kRowLanes];
      const double nearest = rows.nearest[r % kRowLanes];
      if (!(nearest < kInfinity)) return false;
      out.distances[row - first_row + r] = nearest;
      out.indices[row - first_row + r] = int64_t(rows.index[r % kRowLanes]);
    }
  }
  return true;
}

}  // namespace
}  // namespace vqvae_fast
