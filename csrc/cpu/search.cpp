#include "search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../elements.h"
#include "../score_bound.h"
#include "aligned_buffer.h"
#include "dispatch.h"
#include "filter.h"
#include "gather.h"

namespace vqvae_fast {
namespace {

// What a thread must have to do before waking it pays: multiply-adds of the search, elements of a
// codebook to pack.
constexpr double kSearchWork = 1 << 16;
constexpr int64_t kPackWork = 1 << 13;

// A centre for the codebook: per dimension the median of a few codes spread over it. Any centre
// is correct. A good one makes the numbers small and the error bound with them; the median stays
// among the codes even when a few of them are far away.
template <class In>
std::vector<Compute<In>> find_centre(const Codes<In>& codes) {
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
  // All dimensions are sorted at once, by exchanging neighbours: that vectorises.
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

// The power of two that brings `largest` to about 1, so that no product of ordinary numbers
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
OwnedBook<In> pack_codebook(const Engine<In>& engine, const Codes<In>& codes,
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
  book.start = book.panels + padded * codes.dim;
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

// Rows are divided first: that repeats no work. Where they are fewer than the threads can share,
// the codes are divided too, and each part of them has an answer of its own to merge.
struct Division {
  int64_t row_parts;
  int64_t code_parts;
};

Division divide(int64_t rows, int64_t panels, int64_t tile_rows, int64_t num_threads) {
  const int64_t row_tiles = (rows + tile_rows - 1) / tile_rows;
  const int64_t row_parts = std::clamp<int64_t>(row_tiles / 2, 1, num_threads);
  return {row_parts, std::min((num_threads + row_parts - 1) / row_parts, panels)};
}

// The answers of the parts of the codebook for some rows, and the final ones: the smallest
// distance, the lowest index among equals. A row with a NaN says the same in every part.
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

// The contract where no code is finite: index 0, and whatever distance that is.
template <class In>
void choose_first_code(const Rows<const In>& z, const Codes<In>& codes, int64_t* indices,
                       Compute<In>* distances) {
  for (int64_t n = 0; n < z.count; ++n) {
    double sum = 0;
    for (int64_t d = 0; d < z.dim; ++d) {
      const double difference = double(widen(z.row(n)[d * z.element_stride])) -
                                double(widen(codes.row(0)[d * codes.element_stride]));
      sum += difference * difference;
    }
    indices[n] = 0;
    distances[n] = Compute<In>(sum);
  }
}

template <class In>
void search_rows(const Engine<In>& engine, const PackedBook<In>& book, const Rows<const In>& z,
                 int64_t* indices, Compute<In>* distances, const Rows<In>& quantized,
                 const ThreadPool& pool) {
  const int64_t scratch_bytes = engine.scratch_bytes(z.dim, book.num_panels);
  const Division by = divide(z.count, book.num_panels, engine.tile_rows, pool.num_threads);

  if (by.code_parts == 1) {
    pool.run(by.row_parts, [&](int64_t part) {
      constexpr int64_t kChunk = 1024;  // rows whose float64 distances are held at a time
      const Buffer scratch = allocate(scratch_bytes);
      std::vector<double> exact(kChunk);
      const int64_t end = part_begin(z.count, by.row_parts, part + 1);
      for (int64_t row = part_begin(z.count, by.row_parts, part); row < end; row += kChunk) {
        const int64_t rows = std::min(kChunk, end - row);
        const Nearest found{indices + row, exact.data()};
        engine.search(book, z, row, row + rows, 0, book.num_panels, scratch.get(), found);
        merge({found}, rows, indices + row, distances + row);
        gather(book.codes, indices, quantized, row, row + rows);
      }
    });
    return;
  }

  std::vector<int64_t> all_indices(by.code_parts * z.count);
  std::vector<double> all_distances(by.code_parts * z.count);
  std::vector<Nearest> found(by.code_parts);
  for (int64_t c = 0; c < by.code_parts; ++c) {
    found[c] = {all_indices.data() + c * z.count, all_distances.data() + c * z.count};
  }
  pool.run(by.row_parts * by.code_parts, [&](int64_t task) {
    const Buffer scratch = allocate(scratch_bytes);
    const int64_t r = task / by.code_parts, c = task % by.code_parts;
    const int64_t row = part_begin(z.count, by.row_parts, r);
    engine.search(book, z, row, part_begin(z.count, by.row_parts, r + 1),
                  part_begin(book.num_panels, by.code_parts, c),
                  part_begin(book.num_panels, by.code_parts, c + 1), scratch.get(),
                  {found[c].indices + row, found[c].distances + row});
  });
  merge(found, z.count, indices, distances);
  gather(book.codes, indices, quantized, 0, z.count);
}

// Whether reading the codebook as it is costs less than packing it.
template <class In>
bool few_rows_serve(const Rows<const In>& z, const Codes<In>& codes) {
  constexpr int64_t kFewRows = 8;
  return z.count <= kFewRows && codes.element_stride == 1 && !too_long<Compute<In>>(codes.dim);
}

// False where the values need a packed codebook.
template <class In>
bool search_few_rows(const Engine<In>& engine, const Rows<const In>& z, const Codes<In>& codes,
                     int64_t* indices, Compute<In>* distances, const ThreadPool& pool) {
  const int64_t parts = std::min(pool.num_threads, codes.count);
  std::vector<int64_t> all_indices(parts * z.count);
  std::vector<double> all_distances(parts * z.count);
  std::vector<Nearest> found(parts);
  std::vector<char> served(parts);
  for (int64_t p = 0; p < parts; ++p) {
    found[p] = {all_indices.data() + p * z.count, all_distances.data() + p * z.count};
  }
  pool.run(parts, [&](int64_t p) {
    const int64_t first = part_begin(codes.count, parts, p);
    const int64_t last = part_begin(codes.count, parts, p + 1);
    const Buffer scratch = allocate(engine.few_rows_scratch_bytes(z.dim, last - first));
    served[p] = engine.search_few_rows(codes, z, first, last, scratch.get(), found[p]);
  });
  for (char part_served : served) {
    if (!part_served) return false;
  }
  merge(found, z.count, indices, distances);
  return true;
}

// Searches the listed rows: side by side, because a search takes rows that lie regularly.
template <class In>
void search_listed(const Engine<In>& engine, const PackedBook<In>& book, const Rows<const In>& z,
                   const std::vector<int64_t>& listed, int64_t* indices, Compute<In>* distances,
                   const Rows<In>& quantized, const ThreadPool& pool) {
  constexpr int64_t kChunk = 8192;
  const int64_t most = std::min<int64_t>(kChunk, listed.size());
  std::vector<In> copies(most * z.dim);
  std::vector<int64_t> found(most);
  std::vector<Compute<In>> found_distances(most);
  for (size_t first = 0; first < listed.size(); first += kChunk) {
    const int64_t count = std::min<int64_t>(kChunk, listed.size() - first);
    for (int64_t i = 0; i < count; ++i) {
      const In* row = z.row(listed[first + i]);
      for (int64_t d = 0; d < z.dim; ++d) copies[i * z.dim + d] = row[d * z.element_stride];
    }
    const Rows<const In> rows{copies.data(), count, z.dim, count, 0, z.dim, 1};
    search_rows(engine, book, rows, found.data(), found_distances.data(), Rows<In>{}, pool);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = listed[first + i];
      indices[row] = found[i];
      distances[row] = found_distances[i];
      gather(book.codes, indices, quantized, row, row + 1);
    }
  }
}

}  // namespace

template <class In>
void search_codebook(const Rows<const In>& z, const Codes<In>& codes, int64_t* indices,
                     Compute<In>* distances, const Rows<In>& quantized, const ThreadPool& pool) {
  if (z.count == 0) return;
  const double work = double(z.count) * double(codes.count) * double(z.dim);
  const ThreadPool workers{work < kSearchWork ? 1 : pool.num_threads, pool.run};
  // One instruction set for the whole call, whatever another thread selects meanwhile.
  const InstructionSet& set = instruction_set();
  const Engine<In>& engine = set.engine(static_cast<const In*>(nullptr));
  if (few_rows_serve(z, codes) && search_few_rows(engine, z, codes, indices, distances, workers)) {
    gather(codes, indices, quantized, 0, z.count);
    return;
  }
  std::vector<int64_t> left;
  bool all_left = true;
  if constexpr (has_filter<In>) {
    if (set.filters != nullptr && filter_serves(z, codes, workers)) {
      all_left = !filter_rows(*set.filters->filter(static_cast<const In*>(nullptr)), z, codes,
                              indices, distances, quantized, workers, left);
    }
  }
  if (!all_left && left.empty()) return;
  const OwnedBook<In> owned = pack_codebook(engine, codes, workers);
  if (owned.book.first_usable < 0) {
    choose_first_code(z, codes, indices, distances);
    gather(codes, indices, quantized, 0, z.count);
  } else if (all_left) {
    search_rows(engine, owned.book, z, indices, distances, quantized, workers);
  } else {
    search_listed(engine, owned.book, z, left, indices, distances, quantized, workers);
  }
}

#define VQVAE_FAST_INSTANTIATE(In)                                                               \
  template void search_codebook(const Rows<const In>&, const Codes<In>&, int64_t*, Compute<In>*, \
                                const Rows<In>&, const ThreadPool&)
VQVAE_FAST_INSTANTIATE(float);
VQVAE_FAST_INSTANTIATE(double);
VQVAE_FAST_INSTANTIATE(BFloat16);
VQVAE_FAST_INSTANTIATE(Half);

}  // namespace vqvae_fast
