// An OwnedBook is a codebook packed for float32 or float64, with its memory.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../../elements.h"
#include "../aligned_buffer.h"
#include "../contract.h"
#include "../parallel.h"

namespace vqvae_fast {

// Another thread is woken for every so many elements to pack.
constexpr int64_t kPackWork = 1 << 13;

// Returns a centre for the codebook: per dimension the median of a few codes spread over it. Any
// centre is correct. A good one makes the numbers small and the error bound with them; the median
// stays among the codes even when a few of them are far away.
template <class In>
std::vector<Compute<In>> find_centre(const ListedCodes<In>& codes) {
  using T = Compute<In>;
  constexpr int64_t kSamples = 9;
  const int64_t dim = codes.dim;
  const int64_t wanted = std::min(codes.count, kSamples);
  std::vector<T> samples(wanted * dim);
  int64_t count = 0;
  for (int64_t s = 0; s < wanted; ++s) {
    const In* code = codes.row(part_begin(codes.count, wanted, s));
    T* sample = samples.data() + count * dim;
    bool finite = true;
    for (int64_t d = 0; d < dim; ++d) {
      sample[d] = widen(code[d * codes.element_stride]);
      finite &= std::isfinite(sample[d]);
    }
    count += finite;
  }
  if (count == 0) return std::vector<T>(dim);
  // This loop sorts all dimensions at once, by exchanging neighbours, because that vectorises.
  for (int64_t round = 0; round < count; ++round) {
    for (int64_t s = round % 2; s + 1 < count; s += 2) {
      T* low = samples.data() + s * dim;
      T* high = low + dim;
      for (int64_t d = 0; d < dim; ++d) {
        const T a = low[d], b = high[d];
        low[d] = a < b ? a : b;
        high[d] = a < b ? b : a;
      }
    }
  }
  const T* median = samples.data() + count / 2 * dim;
  return std::vector<T>(median, median + dim);
}

// Returns the power of two that brings `largest` to about 1, so that no product of ordinary numbers
// underflows or overflows. Scaling by it is exact.
template <class T>
T scale_for(T largest) {
  if (largest == 0) return 1;
  int exponent = 0;
  std::frexp(largest, &exponent);
  return std::ldexp(T(1), std::min(-exponent, std::numeric_limits<T>::max_exponent - 2));
}

template <class In>
struct OwnedBook {
  PackedBook<In> book;
  std::vector<Compute<In>> centre;
  Buffer panels;
};

template <class In>
OwnedBook<In> pack_codebook(const Engine<In>& engine, const ListedCodes<In>& codes,
                            const ThreadPool& pool) {
  using T = Compute<In>;
  OwnedBook<In> owned{{}, find_centre(codes), nullptr};
  PackedBook<In>& book = owned.book;
  book.codes = codes;
  book.width = engine.panel_width;
  book.num_panels = (codes.count + book.width - 1) / book.width;

  const int64_t parts = std::clamp<int64_t>(codes.count * codes.dim / kPackWork, 1,
                                            std::min(pool.num_threads, book.num_panels));
  std::vector<T> largest(parts);
  pool.run(parts, [&](int64_t i) {
    largest[i] = engine.largest_magnitude(codes, part_begin(codes.count, parts, i),
                                          part_begin(codes.count, parts, i + 1));
  });
  book.scale = scale_for(*std::max_element(largest.begin(), largest.end()));
  for (T& c : owned.centre) c *= book.scale;
  book.centre = owned.centre.data();

  const int64_t padded = book.num_panels * book.width;
  owned.panels = allocate(padded * (codes.dim + 1) * int64_t{sizeof(T)});
  book.panels = static_cast<T*>(owned.panels.get());
  book.half_norm = book.panels + padded * codes.dim;
  std::vector<PackedRange> ranges(parts);
  pool.run(parts, [&](int64_t i) {
    ranges[i] = engine.pack(book, part_begin(book.num_panels, parts, i),
                            part_begin(book.num_panels, parts, i + 1));
  });
  book.first_usable = -1;
  book.max_norm = 0;
  for (const PackedRange& range : ranges) {
    book.max_norm = std::max(book.max_norm, range.max_norm);
    if (book.first_usable < 0) book.first_usable = range.first_usable;
  }
  return owned;
}

}  // namespace vqvae_fast
