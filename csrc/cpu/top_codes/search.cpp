#include "search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../../elements.h"
#include "../aligned_buffer.h"
#include "../codes/distinct.h"
#include "../dispatch.h"
#include "../float_search/owned_book.h"
#include "../int8_filter/filter.h"
#include "../search.h"

namespace vqvae_fast {
namespace {

// So many rows are searched between two writes of results.
constexpr int64_t kChunkRows = 128;
// A search with fewer multiply-adds runs on one thread: waking another would cost more.
constexpr double kSearchWork = 1 << 16;
// The copies of codes are left out if there are at least so many.
constexpr int64_t kWorthwhile = 8;

// A row that does not have k codes at a finite distance from search: how many it has, or its mark.
struct SpecialRow {
  int64_t row, count;
};

// A TopSearch holds what all steps of one search share.
template <class In>
class TopSearch {
 public:
  TopSearch(const Codes<In>& codes, int64_t k, int64_t* indices, Compute<In>* distances,
            const ThreadPool& pool)
      : set_(instruction_set()),
        codes_(codes),
        k_(k),
        indices_(indices),
        distances_(distances),
        pool_(pool) {}

  void run(const Rows<const In>& z, const PackedBytes& packed) {
    const PackedForms<In> forms = forms_in(packed, codes_, set_);
    const ListedCodes<In> all = list_all(codes_);
    std::vector<int64_t> unsettled(z.count);
    for (int64_t n = 0; n < z.count; ++n) unsettled[n] = n;
    if (forms.floats) {
      unsettled = search_floats(*forms.floats, patience(), z, unsettled);
    } else {
      if (forms.integers) {
        unsettled = search_integers(*forms.integers, z, unsettled);
      } else {
        unsettled = search_integers(all, z, unsettled);
      }
      unsettled = search_floats(all, patience(), z, unsettled);
    }
    if (!unsettled.empty()) {
      // With k copies of a code its others are not needed, because they come after those.
      ListedCodes<In> list = all;
      const std::vector<int64_t> some = distinct_codes(codes_, pool_, k_);
      if (codes_.count - int64_t(some.size()) >= kWorthwhile) {
        list.count = some.size();
        list.listed = some.data();
      }
      search_floats(list, HUGE_VAL, z, unsettled);
    }
    fill_special_rows(z);
  }

 private:
  // The codes that a row may measure before they are probably copies of each other.
  double patience() const { return 4 * double(k_) + double(codes_.count) / 16; }

  std::vector<int64_t> search_integers(const ListedCodes<In>& list, const Rows<const In>& z,
                                       const std::vector<int64_t>& rows) {
    if constexpr (has_filter<In>) {
      if (set_.filters == nullptr) return rows;
      const Int8Filter<In>& filter = *set_.filters->filter(static_cast<const In*>(nullptr));
      OwnedInt8Book<In> owned;
      if (!filter_serves(filter, z, list, pool_) ||
          !pack_int8_book(filter, list, Directions::kWidestFirst, pool_, owned)) {
        return rows;
      }
      return search_integers(owned.book, z, rows);
    } else {
      return rows;
    }
  }

  std::vector<int64_t> search_integers(const Int8Book<In>& book, const Rows<const In>& z,
                                       const std::vector<int64_t>& rows) {
    if constexpr (has_filter<In>) {
      const Int8Filter<In>& filter = *set_.filters->filter(static_cast<const In*>(nullptr));
      return search_rows(
          book.codes, z, rows, filter.block_rows,
          filter.top_scratch_bytes(book, std::min(kChunkRows, z.count), k_),
          [&](const Rows<const In>& z, int64_t first, int64_t last, void* scratch, TopCodes out) {
            filter.search_top(book, z, first, last, scratch, out);
          });
    } else {
      return rows;
    }
  }

  std::vector<int64_t> search_floats(const ListedCodes<In>& list, double patience,
                                     const Rows<const In>& z, const std::vector<int64_t>& rows) {
    if (rows.empty()) return {};
    const OwnedBook<In> owned = pack_codebook(set_.engine<In>(), list, pool_);
    if (owned.book.first_usable < 0) {
      for (const int64_t row : rows) special_.push_back({row, 0});
      return {};
    }
    return search_floats(owned.book, patience, z, rows);
  }

  std::vector<int64_t> search_floats(const PackedBook<In>& book, double patience,
                                     const Rows<const In>& z, const std::vector<int64_t>& rows) {
    const Engine<In>& engine = set_.engine<In>();
    return search_rows(
        book.codes, z, rows, engine.tile_rows, engine.top_scratch_bytes(z.dim, k_),
        [&](const Rows<const In>& z, int64_t first, int64_t last, void* scratch, TopCodes out) {
          engine.search_top(book, z, first, last, patience, scratch, out);
        });
  }

  // Searches for the listed rows of z, chunks of them, and writes their results. Returns those that
  // stay unsettled.
  template <class Search>
  std::vector<int64_t> search_rows(const ListedCodes<In>& list, const Rows<const In>& z,
                                   const std::vector<int64_t>& rows, int64_t tile_rows,
                                   int64_t scratch_bytes, Search search) {
    const int64_t count = rows.size();
    const int64_t tiles = (count + tile_rows - 1) / tile_rows;
    const int64_t parts = std::clamp<int64_t>(tiles, 1, pool_.num_threads);
    std::vector<std::vector<int64_t>> unsettled_of(parts);
    std::vector<std::vector<SpecialRow>> special_of(parts);
    pool_.run(parts, [&](int64_t part) {
      const Buffer scratch = allocate(scratch_bytes);
      std::vector<Measured> found(std::min(kChunkRows, count) * k_);
      int64_t counts[kChunkRows];
      std::vector<In> copies;
      const int64_t end = part_begin(count, parts, part + 1);
      for (int64_t begin = part_begin(count, parts, part); begin < end; begin += kChunkRows) {
        const int64_t size = std::min(kChunkRows, end - begin);
        const TopCodes out{k_, found.data(), counts};
        if (count == z.count) {
          search(z, begin, begin + size, scratch.get(), out);
        } else {
          search(copied_rows(z, rows.data() + begin, size, copies), 0, size, scratch.get(), out);
        }
        for (int64_t i = 0; i < size; ++i) {
          const int64_t row = rows[begin + i];
          if (counts[i] == kUnsettledRow) {
            unsettled_of[part].push_back(row);
            continue;
          }
          if (counts[i] < k_) special_of[part].push_back({row, counts[i]});
          for (int64_t j = 0; j < counts[i]; ++j) {
            indices_[row * k_ + j] = list.place(found[i * k_ + j].index);
            distances_[row * k_ + j] = Compute<In>(found[i * k_ + j].distance);
          }
        }
      }
    });
    std::vector<int64_t> unsettled;
    for (int64_t part = 0; part < parts; ++part) {
      unsettled.insert(unsettled.end(), unsettled_of[part].begin(), unsettled_of[part].end());
      special_.insert(special_.end(), special_of[part].begin(), special_of[part].end());
    }
    return unsettled;
  }

  // Copies the listed rows side by side, because a search takes rows at regular strides.
  static Rows<const In> copied_rows(const Rows<const In>& z, const int64_t* listed, int64_t count,
                                    std::vector<In>& copies) {
    copies.resize(count * z.dim);
    for (int64_t i = 0; i < count; ++i) {
      const In* row = z.row(listed[i]);
      for (int64_t d = 0; d < z.dim; ++d) copies[i * z.dim + d] = row[d * z.element_stride];
    }
    return {copies.data(), count, z.dim, count, 0, z.dim, 1};
  }

  // Completes the rows that have fewer than k codes: the codes that are not finite come last.
  void fill_special_rows(const Rows<const In>& z) {
    if (special_.empty()) return;
    std::vector<int64_t> usable, unusable;
    for (int64_t code = 0; code < codes_.count; ++code) {
      (is_usable(code) ? usable : unusable).push_back(code);
    }
    for (const SpecialRow& special : special_) {
      int64_t count = std::max<int64_t>(special.count, 0);
      const auto add = [&](int64_t code, double distance) {
        if (count == k_) return;
        indices_[special.row * k_ + count] = code;
        distances_[special.row * k_ + count] = Compute<In>(distance);
        ++count;
      };
      if (special.count == kNanRow) {
        for (int64_t code = 0; code < k_; ++code) {
          add(code, std::numeric_limits<double>::quiet_NaN());
        }
      }
      if (special.count == kInfiniteRow) {
        for (const int64_t code : usable) add(code, HUGE_VAL);
      }
      for (size_t i = 0; i < unusable.size() && count < k_; ++i) {
        add(unusable[i], distance(z.row(special.row), z, unusable[i]));
      }
    }
  }

  bool is_usable(int64_t code) const {
    bool finite = true;
    for (int64_t d = 0; d < codes_.dim; ++d) {
      finite &= std::isfinite(widen(codes_.row(code)[d * codes_.element_stride]));
    }
    return finite;
  }

  double distance(const In* row, const Rows<const In>& z, int64_t code) const {
    double sum = 0;
    for (int64_t d = 0; d < codes_.dim; ++d) {
      const double difference = double(widen(row[d * z.element_stride])) -
                                double(widen(codes_.row(code)[d * codes_.element_stride]));
      sum += difference * difference;
    }
    return sum;
  }

  // One instruction set for the whole search, whatever another thread selects meanwhile.
  const InstructionSet& set_;
  const Codes<In> codes_;
  const int64_t k_;
  int64_t* const indices_;
  Compute<In>* const distances_;
  const ThreadPool& pool_;
  std::vector<SpecialRow> special_;
};

}  // namespace

template <class In>
void search_top_codes(const Rows<const In>& z, const Codes<In>& codes, const PackedBytes& packed,
                      int64_t k, int64_t* indices, Compute<In>* distances, const ThreadPool& pool) {
  if (z.count == 0) return;
  if (k == 1) return search_codebook(z, codes, packed, indices, distances, Rows<In>{}, pool);
  const double work = double(z.count) * double(codes.count) * double(z.dim);
  const ThreadPool workers{work < kSearchWork ? 1 : pool.num_threads, pool.run};
  TopSearch<In>(codes, k, indices, distances, workers).run(z, packed);
}

#define VQVAE_FAST_INSTANTIATE(In)                                                            \
  template void search_top_codes(const Rows<const In>&, const Codes<In>&, const PackedBytes&, \
                                 int64_t, int64_t*, Compute<In>*, const ThreadPool&)
VQVAE_FAST_INSTANTIATE(float);
VQVAE_FAST_INSTANTIATE(double);
VQVAE_FAST_INSTANTIATE(BFloat16);
VQVAE_FAST_INSTANTIATE(Half);

}  // namespace vqvae_fast
