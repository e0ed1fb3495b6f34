#include "search.h"

#include <algorithm>
#include <vector>

#include "../elements.h"
#include "../score_bound.h"
#include "aligned_buffer.h"
#include "dispatch.h"
#include "filter.h"
#include "gather.h"
#include "owned_book.h"

namespace vqvae_fast {
namespace {

// Multiply-adds that a search must have before waking a second thread pays.
constexpr double kSearchWork = 1 << 16;

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

template <class In>
bool few_rows_serve(const Rows<const In>& z, const Codes<In>& codes) {
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

// The search in z's own arithmetic, float32 or float64.
template <class In>
void search_unfiltered(const Engine<In>& engine, const Rows<const In>& z, const Codes<In>& codes,
                       int64_t* indices, Compute<In>* distances, const Rows<In>& quantized,
                       const ThreadPool& pool) {
  if (few_rows_serve(z, codes) && search_few_rows(engine, z, codes, indices, distances, pool)) {
    gather(codes, indices, quantized, 0, z.count);
    return;
  }
  const OwnedBook<In> owned = pack_codebook(engine, codes, pool);
  if (owned.book.first_usable < 0) {
    choose_first_code(z, codes, indices, distances);
    gather(codes, indices, quantized, 0, z.count);
  } else {
    search_rows(engine, owned.book, z, indices, distances, quantized, pool);
  }
}

// The same of listed rows: side by side, because a search takes rows that lie regularly.
template <class In>
void search_listed(const Engine<In>& engine, const Rows<const In>& z, const Codes<In>& codes,
                   const std::vector<int64_t>& listed, int64_t* indices, Compute<In>* distances,
                   const Rows<In>& quantized, const ThreadPool& pool) {
  constexpr int64_t kElements = 1 << 20;  // copied at a time
  const int64_t total = listed.size();
  const int64_t chunk = std::min(std::max<int64_t>(kElements / z.dim, 256), total);
  std::vector<In> copies(chunk * z.dim);
  std::vector<int64_t> found(chunk);
  std::vector<Compute<In>> found_distances(chunk);
  for (int64_t first = 0; first < total; first += chunk) {
    const int64_t count = std::min(chunk, total - first);
    for (int64_t i = 0; i < count; ++i) {
      const In* row = z.row(listed[first + i]);
      for (int64_t d = 0; d < z.dim; ++d) copies[i * z.dim + d] = row[d * z.element_stride];
    }
    const Rows<const In> rows{copies.data(), count, z.dim, count, 0, z.dim, 1};
    search_unfiltered(engine, rows, codes, found.data(), found_distances.data(), Rows<In>{}, pool);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = listed[first + i];
      indices[row] = found[i];
      distances[row] = found_distances[i];
      gather(codes, indices, quantized, row, row + 1);
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
  if constexpr (has_filter<In>) {
    std::vector<int64_t> unsettled;
    if (set.filters != nullptr && filter_serves(z, codes, workers) &&
        filter_rows(*set.filters->filter(static_cast<const In*>(nullptr)), z, codes, indices,
                    distances, quantized, workers, unsettled)) {
      search_listed(engine, z, codes, unsettled, indices, distances, quantized, workers);
      return;
    }
  }
  search_unfiltered(engine, z, codes, indices, distances, quantized, workers);
}

#define VQVAE_FAST_INSTANTIATE(In)                                                               \
  template void search_codebook(const Rows<const In>&, const Codes<In>&, int64_t*, Compute<In>*, \
                                const Rows<In>&, const ThreadPool&)
VQVAE_FAST_INSTANTIATE(float);
VQVAE_FAST_INSTANTIATE(double);
VQVAE_FAST_INSTANTIATE(BFloat16);
VQVAE_FAST_INSTANTIATE(Half);

}  // namespace vqvae_fast
