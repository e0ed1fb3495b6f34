#include "search.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../elements.h"
#include "../score_bound.h"
#include "aligned_buffer.h"
#include "codes/distinct.h"
#include "codes/gather.h"
#include "dispatch.h"
#include "division.h"
#include "float_search/owned_book.h"
#include "int8_filter/filter.h"

namespace vqvae_fast {
namespace {

// A search with fewer multiply-adds runs on one thread: waking another would cost more.
constexpr double kSearchWork = 1 << 16;

// A row may have to measure every copy of its nearest code. So the search looks for copies at once
// if the filter leaves one row in kCommon unsettled, and leaves them out if there are at least
// kWorthwhile.
constexpr int64_t kCommon = 4, kWorthwhile = 8;

// A search writes its answers here. quantized.data may be null.
template <class In>
struct Answers {
  int64_t* indices;
  Compute<In>* distances;
  Rows<In> quantized;
};

// Chooses code 0 for every row, as the contract requires if no code is finite.
template <class In>
void choose_first_code(const Rows<const In>& z, const ListedCodes<In>& codes,
                       const Answers<In>& out) {
  for (int64_t n = 0; n < z.count; ++n) {
    double sum = 0;
    for (int64_t d = 0; d < z.dim; ++d) {
      const double difference = double(widen(z.row(n)[d * z.element_stride])) -
                                double(widen(codes.row(0)[d * codes.element_stride]));
      sum += difference * difference;
    }
    out.indices[n] = 0;
    out.distances[n] = Compute<In>(sum);
  }
  gather(codes, out.indices, out.quantized, 0, z.count);
}

// Effort decides about a row that needs many measurements. Limited: it becomes unsettled, because
// its codes may be copies of each other. Unlimited: it is measured.
enum class Effort { kLimited, kUnlimited };

// Returns how many measurements beyond the expected few a row may need. They take about as long as
// half of its scores. Codes of one or two dimensions are measured quickly, and many of them lie
// within an error of float32 although they are no copies.
double patience_for(Effort effort, int64_t num_codes, int64_t dim) {
  const int64_t codes_of_one = std::min<int64_t>(16 * dim, 64);
  return effort == Effort::kLimited ? double(num_codes) / double(codes_of_one) + 8 : HUGE_VAL;
}

// Writes the answers of the rows that the first look settles, and appends the others to
// `unsettled`.
template <class In>
void search_rows(const Engine<In>& engine, const PackedBook<In>& book, const Rows<const In>& z,
                 Effort effort, const Answers<In>& out, const ThreadPool& pool,
                 std::vector<int64_t>& unsettled) {
  const int64_t scratch_bytes = engine.scratch_bytes(z.dim, book.num_panels);
  const Division by = divide(z.count, engine.tile_rows, book.num_panels, pool.num_threads);
  const double patience = patience_for(effort, book.codes.count / by.code_parts, z.dim);
  const auto begin_of = [&](int64_t part) { return part_begin(z.count, by.row_parts, part); };
  const auto finish = [&](const std::vector<Nearest>& parts, int64_t first, int64_t last) {
    merge(parts, last - first, out.indices + first, out.distances + first);
    keep_in_bounds(out.indices, first, last, book.codes.count);
    gather(book.codes, out.indices, out.quantized, first, last);
    for (int64_t n = first; n < last; ++n) out.indices[n] = book.codes.place(out.indices[n]);
  };
  std::vector<int64_t> done(by.row_parts * by.code_parts);  // the row that each part ended before

  if (by.code_parts == 1) {
    pool.run(by.row_parts, [&](int64_t part) {
      constexpr int64_t kChunk = 1024;  // rows whose float64 distances are held at a time
      const Buffer scratch = allocate(scratch_bytes);
      std::vector<double> exact(kChunk);
      const int64_t end = begin_of(part + 1);
      int64_t row = begin_of(part), last = row;
      for (; row < end && row == last; row = done[part]) {
        last = std::min(row + kChunk, end);
        const Nearest found{out.indices + row, exact.data()};
        done[part] =
            engine.search(book, z, row, last, 0, book.num_panels, patience, scratch.get(), found);
        finish({found}, row, done[part]);
      }
    });
  } else {
    std::vector<int64_t> all_indices(by.code_parts * z.count);
    std::vector<double> all_distances(by.code_parts * z.count);
    const auto found = [&](int64_t c, int64_t row) {
      return Nearest{all_indices.data() + c * z.count + row,
                     all_distances.data() + c * z.count + row};
    };
    pool.run(by.row_parts * by.code_parts, [&](int64_t task) {
      const Buffer scratch = allocate(scratch_bytes);
      const int64_t r = task / by.code_parts, c = task % by.code_parts;
      done[task] = engine.search(book, z, begin_of(r), begin_of(r + 1),
                                 part_begin(book.num_panels, by.code_parts, c),
                                 part_begin(book.num_panels, by.code_parts, c + 1), patience,
                                 scratch.get(), found(c, begin_of(r)));
    });
    for (int64_t r = 0; r < by.row_parts; ++r) {
      const auto of_row_part = done.begin() + r * by.code_parts;
      done[r] = *std::min_element(of_row_part, of_row_part + by.code_parts);
      std::vector<Nearest> parts;
      for (int64_t c = 0; c < by.code_parts; ++c) parts.push_back(found(c, begin_of(r)));
      finish(parts, begin_of(r), done[r]);
    }
  }
  for (int64_t r = 0; r < by.row_parts; ++r) {
    for (int64_t n = done[r]; n < begin_of(r + 1); ++n) unsettled.push_back(n);
  }
}

// Measuring every code takes no packing and next to no time for a row: eight rows and a code take
// 0.5 ns, and 0.2 ns for each dimension. So it serves any number of rows if the codes, each with
// kDimsOfCode dimensions more, have kSmallCodebook elements at most. It also serves up to
// kMeasuredRows rows of no more dimensions than rows, and kShort at most, and kMeasuredLanes rows
// or more if the pairs of a row and a code times the squared dimensions are at most kMeasuredWork.
// docs/performance.md has the times.
constexpr int64_t kSmallCodebook = 512, kDimsOfCode = 2;
constexpr int64_t kMeasuredRows = 16, kShort = 8, kMeasuredLanes = 8;
constexpr double kMeasuredWork = 1 << 19;

template <class In>
bool measuring_serves(const Rows<const In>& z, const Codes<In>& codes,
                      const PackedForms<In>& forms) {
  const int64_t dim = codes.dim;
  if (dim > kLongestMeasured) return false;
  if (codes.count * (dim + kDimsOfCode) <= kSmallCodebook) return true;
  if (forms.integers || forms.floats) return false;
  if (z.count <= kMeasuredRows && dim <= std::min(z.count, kShort)) return true;
  return z.count >= kMeasuredLanes &&
         double(z.count) * double(codes.count) * double(dim * dim) <= kMeasuredWork;
}

// Searches by measuring every code. Returns false if the values need scores.
template <class In>
bool measure_all(const Engine<In>& engine, const Rows<const In>& z, const Codes<In>& codes,
                 const Answers<In>& out, const ThreadPool& pool) {
  const Division by = divide(z.count, kMeasuredLanes, codes.count, pool.num_threads);
  const auto begin_of = [&](int64_t part) { return part_begin(z.count, by.row_parts, part); };
  std::vector<int64_t> indices(by.code_parts * z.count);
  std::vector<double> distances(by.code_parts * z.count);
  std::vector<char> served(by.row_parts * by.code_parts);
  const auto found = [&](int64_t c, int64_t row) {
    return Nearest{indices.data() + c * z.count + row, distances.data() + c * z.count + row};
  };
  pool.run(by.row_parts * by.code_parts, [&](int64_t task) {
    const int64_t r = task / by.code_parts, c = task % by.code_parts;
    served[task] = engine.measure_all(
        codes, z, begin_of(r), begin_of(r + 1), part_begin(codes.count, by.code_parts, c),
        part_begin(codes.count, by.code_parts, c + 1), found(c, begin_of(r)));
  });
  if (std::find(served.begin(), served.end(), false) != served.end()) return false;
  pool.run(by.row_parts, [&](int64_t r) {
    const int64_t first = begin_of(r), last = begin_of(r + 1);
    std::vector<Nearest> parts;
    for (int64_t c = 0; c < by.code_parts; ++c) parts.push_back(found(c, first));
    merge(parts, last - first, out.indices + first, out.distances + first);
    gather(codes, out.indices, out.quantized, first, last);
  });
  return true;
}

// How many rows are few depends on what packing would cost. In floats short codes are packed
// quickly: kFewOfShortFloats rows are few, and one more for each dimension, but no more than
// kFewOfFloats. Integers are packed faster: kFewOfIntegers rows are few, and one more for
// kDimsForOneMore dimensions. docs/performance.md has the times.
constexpr int64_t kFewOfShortFloats = 5, kFewOfFloats = 20;
constexpr int64_t kFewOfIntegers = 10, kDimsForOneMore = 8;
// Against a small codebook more rows are few: those of so many pairs of a row and a code.
constexpr int64_t kFewPairs = 1 << 13, kMostFewRows = 256;
// If the codebook is packed in floats already, a search takes as long for one row as for a whole
// tile. One row of this length is few, two of twice the length, and so on.
constexpr int64_t kDimOfPackedRow = 64;

template <class In>
bool filter_serves(const InstructionSet& set, const Rows<const In>& z, const ListedCodes<In>& codes,
                   const ThreadPool& pool) {
  if constexpr (has_filter<In>) {
    return set.filters != nullptr &&
           filter_serves(*set.filters->filter(static_cast<const In*>(nullptr)), z, codes, pool);
  } else {
    return false;
  }
}

// Returns whether the rows should be searched in the codes themselves.
template <class In>
bool few_rows_serve(const InstructionSet& set, const Rows<const In>& z, const Codes<In>& codes,
                    const PackedForms<In>& forms, const ThreadPool& pool) {
  if (codes.element_stride != 1 || too_long<Compute<In>>(codes.dim)) return false;
  if (forms.floats) return z.count <= codes.dim / kDimOfPackedRow;
  const bool in_integers = filter_serves(set, z, list_all(codes), pool);
  const int64_t few = in_integers ? std::min(kFewOfIntegers + codes.dim / kDimsForOneMore, kFewRows)
                                  : std::min(kFewOfShortFloats + codes.dim, kFewOfFloats);
  return z.count <= std::max(few, std::min(kFewPairs / codes.count, kMostFewRows));
}

// Searches without packing the codebook. Returns false if the values need a packed one.
template <class In>
bool search_few_rows(const Engine<In>& engine, const Rows<const In>& z, const Codes<In>& codes,
                     const Answers<In>& out, const ThreadPool& pool) {
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
    const Buffer scratch = allocate(engine.few_rows_scratch_bytes(z.dim));
    served[p] = engine.search_few_rows(codes, z, first, last, scratch.get(), found[p]);
  });
  for (char part_served : served) {
    if (!part_served) return false;
  }
  merge(found, z.count, out.indices, out.distances);
  gather(codes, out.indices, out.quantized, 0, z.count);
  return true;
}

// Searches in the arithmetic of z, float32 or float64.
template <class In>
void search_unfiltered(const Engine<In>& engine, const Rows<const In>& z,
                       const ListedCodes<In>& codes, Effort effort, const Answers<In>& out,
                       const ThreadPool& pool, std::vector<int64_t>& unsettled) {
  const OwnedBook<In> owned = pack_codebook(engine, codes, pool);
  if (owned.book.first_usable < 0) {
    choose_first_code(z, codes, out);
  } else {
    search_rows(engine, owned.book, z, effort, out, pool, unsettled);
  }
}

// Searches with the int8 filter and returns whether it served; it appends the rows that it does not
// settle to `unsettled`.
template <class In>
bool search_filtered(const InstructionSet& set, const Rows<const In>& z,
                     const ListedCodes<In>& codes, const Answers<In>& out, const ThreadPool& pool,
                     std::vector<int64_t>& unsettled) {
  if constexpr (has_filter<In>) {
    if (!filter_serves(set, z, codes, pool)) return false;
    const Int8Filter<In>& filter = *set.filters->filter(static_cast<const In*>(nullptr));
    return filter_rows(filter, z, codes, out.indices, out.distances, out.quantized, pool,
                       unsettled);
  } else {
    return false;
  }
}

// Does the same in a codebook that is packed for the filter.
template <class In>
void search_filtered(const InstructionSet& set, const Rows<const In>& z, const Int8Book<In>& book,
                     const Answers<In>& out, const ThreadPool& pool,
                     std::vector<int64_t>& unsettled) {
  if constexpr (has_filter<In>) {
    const Int8Filter<In>& filter = *set.filters->filter(static_cast<const In*>(nullptr));
    filter_packed_rows(filter, book, z, out.indices, out.distances, out.quantized, pool, unsettled);
  }
}

// Copies the listed rows side by side and searches them, because a search takes rows at regular
// strides. search(rows, answers, unsettled) does it for some at a time. Returns those that it did
// not settle.
template <class In, class Search>
std::vector<int64_t> search_listed(const Rows<const In>& z, const Codes<In>& codes,
                                   const std::vector<int64_t>& listed, const Answers<In>& out,
                                   Search search) {
  constexpr int64_t kElements = 1 << 20;  // copied at a time
  const int64_t total = listed.size();
  const int64_t chunk = std::min(std::max<int64_t>(kElements / z.dim, 256), total);
  std::vector<In> copies(chunk * z.dim);
  std::vector<int64_t> found(chunk), unsettled_of_chunk, unsettled;
  std::vector<Compute<In>> found_distances(chunk);
  for (int64_t first = 0; first < total; first += chunk) {
    const int64_t count = std::min(chunk, total - first);
    for (int64_t i = 0; i < count; ++i) {
      const In* row = z.row(listed[first + i]);
      for (int64_t d = 0; d < z.dim; ++d) copies[i * z.dim + d] = row[d * z.element_stride];
    }
    unsettled_of_chunk.clear();
    const Rows<const In> rows{copies.data(), count, z.dim, count, 0, z.dim, 1};
    search(rows, Answers<In>{found.data(), found_distances.data(), Rows<In>{}}, unsettled_of_chunk);
    for (const int64_t i : unsettled_of_chunk) {
      unsettled.push_back(listed[first + i]);
      found[i] = kAnyCode;
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = listed[first + i];
      out.indices[row] = found[i];
      out.distances[row] = found_distances[i];
      gather(codes, out.indices, out.quantized, row, row + 1);
    }
  }
  return unsettled;
}

}  // namespace

template <class In>
void search_codebook(const Rows<const In>& z, const Codes<In>& codes, const PackedBytes& packed,
                     int64_t* indices, Compute<In>* distances, const Rows<In>& quantized,
                     const ThreadPool& pool) {
  if (z.count == 0) return;
  const double work = double(z.count) * double(codes.count) * double(z.dim);
  const ThreadPool workers{work < kSearchWork ? 1 : pool.num_threads, pool.run};
  // One instruction set for the whole call, whatever another thread selects meanwhile.
  const InstructionSet& set = instruction_set();
  const Engine<In>& engine = set.engine<In>();
  const Answers<In> out{indices, distances, quantized};
  const PackedForms<In> forms = forms_in(packed, codes, set);
  const auto few = [&](const Rows<const In>& rows, const Answers<In>& answers) {
    return few_rows_serve(set, rows, codes, forms, workers) &&
           search_few_rows(engine, rows, codes, answers, workers);
  };
  if (measuring_serves(z, codes, forms) && measure_all(engine, z, codes, out, workers)) return;
  if (!forms.integers && few(z, out)) return;

  ListedCodes<In> list = list_all(codes);
  const auto unfiltered = [&](Effort effort) {
    return [&, effort](const Rows<const In>& rows, const Answers<In>& answers,
                       std::vector<int64_t>& unsettled) {
      search_unfiltered(engine, rows, list, effort, answers, workers, unsettled);
    };
  };
  const auto limited = [&](const Rows<const In>& rows, const Answers<In>& answers,
                           std::vector<int64_t>& unsettled_of_rows) {
    if (!few(rows, answers)) unfiltered(Effort::kLimited)(rows, answers, unsettled_of_rows);
  };
  std::vector<int64_t> unsettled;
  if (forms.floats) {
    search_rows(engine, *forms.floats, z, Effort::kLimited, out, workers, unsettled);
  } else if (forms.integers || search_filtered(set, z, list, out, workers, unsettled)) {
    if (forms.integers) search_filtered(set, z, *forms.integers, out, workers, unsettled);
    const int64_t count = unsettled.size();
    if (count <= kFewRows || count * kCommon < z.count) {
      unsettled = search_listed(z, codes, unsettled, out, limited);
    }
  } else {
    unfiltered(Effort::kLimited)(z, out, unsettled);
  }
  if (unsettled.empty()) return;

  const std::vector<int64_t> distinct = distinct_codes(codes, workers);
  const int64_t count = distinct.size();
  if (codes.count - count >= kWorthwhile) {
    list.count = count;
    list.listed = distinct.data();
    unsettled =
        search_listed(z, codes, unsettled, out,
                      [&](const Rows<const In>& rows, const Answers<In>& answers,
                          std::vector<int64_t>& unsettled_of_rows) {
                        if (search_filtered(set, rows, list, answers, workers, unsettled_of_rows)) {
                          return;
                        }
                        unfiltered(Effort::kUnlimited)(rows, answers, unsettled_of_rows);
                      });
  }
  search_listed(z, codes, unsettled, out, unfiltered(Effort::kUnlimited));
}

template <class In>
int64_t rows_settled_by_filter(const Rows<const In>& z, const Codes<In>& codes,
                               const PackedBytes& packed, const ThreadPool& pool) {
  std::vector<int64_t> indices(z.count), unsettled;
  std::vector<Compute<In>> distances(z.count);
  const Answers<In> unused{indices.data(), distances.data(), Rows<In>{}};
  const InstructionSet& set = instruction_set();
  const PackedForms<In> forms = forms_in(packed, codes, set);
  bool served = forms.integers.has_value();
  if (served) {
    search_filtered(set, z, *forms.integers, unused, pool, unsettled);
  } else if (!forms.floats && !measuring_serves(z, codes, forms) &&
             !few_rows_serve(set, z, codes, forms, pool)) {
    served = search_filtered(set, z, list_all(codes), unused, pool, unsettled);
  }
  return served ? z.count - int64_t(unsettled.size()) : -1;
}

#define VQVAE_FAST_INSTANTIATE(In)                                                           \
  template void search_codebook(const Rows<const In>&, const Codes<In>&, const PackedBytes&, \
                                int64_t*, Compute<In>*, const Rows<In>&, const ThreadPool&); \
  template int64_t rows_settled_by_filter(const Rows<const In>&, const Codes<In>&,           \
                                          const PackedBytes&, const ThreadPool&)
VQVAE_FAST_INSTANTIATE(float);
VQVAE_FAST_INSTANTIATE(double);
VQVAE_FAST_INSTANTIATE(BFloat16);
VQVAE_FAST_INSTANTIATE(Half);

}  // namespace vqvae_fast
