#include "packed_codebook.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "../arena.h"
#include "dispatch.h"
#include "float_search/owned_book.h"
#include "int8_filter/filter.h"

namespace vqvae_fast {
namespace {

// Raise it with every change to the layout.
constexpr uint64_t kLayout = 0x7671666173740001;

enum class Form : int64_t { kNone, kIntegers, kFloats };

template <class In>
constexpr int64_t kElement = 0;
template <>
constexpr int64_t kElement<float> = 1;
template <>
constexpr int64_t kElement<double> = 2;
template <>
constexpr int64_t kElement<BFloat16> = 3;
template <>
constexpr int64_t kElement<Half> = 4;

// The memory begins with a Header; the arrays of the form follow.
struct Header {
  uint64_t layout;
  char instruction_set[32];
  int64_t element, count, dim;  // of the codes
  int64_t bytes;                // of all
  Form form;
  // Only a PackedBook has the next three. The index is 0, which is valid, in the other forms.
  double scale, max_norm;
  int64_t first_usable;
  // Only an Int8Book has the rest.
  int64_t num_wide;
  float unit;
  Int8Sizes largest;
};

Header header_for(const InstructionSet& set, Form form, int64_t element, int64_t count,
                  int64_t dim) {
  Header header{};
  header.layout = kLayout;
  std::strncpy(header.instruction_set, set.name, sizeof header.instruction_set - 1);
  header.form = form;
  header.element = element;
  header.count = count;
  header.dim = dim;
  return header;
}

// Points the arrays of a book into the memory, behind the header. Returns the bytes of all; without
// memory it only counts them.
template <class In>
int64_t place_integers(void* memory, const Header& header, Int8Book<In>& book) {
  book.num_wide = header.num_wide;
  Arena arena(memory, kAlignment);
  arena.take<Header>(1);
  book.groups = arena.take<int32_t>(book.num_groups * book.group_words());
  book.half_norm = arena.take<float>(book.num_groups * book.group_codes);
  book.centre = arena.take<float>(padded_dim(header.dim));
  book.reflections = arena.take<float>(header.num_wide > 0 ? reflections_size(header.dim) : 0);
  return arena.bytes();
}

template <class In>
int64_t place_floats(void* memory, const Header& header, PackedBook<In>& book) {
  using T = Compute<In>;
  const int64_t padded = book.num_panels * book.width;
  Arena arena(memory, kAlignment);
  arena.take<Header>(1);
  book.panels = arena.take<T>(padded * header.dim);
  book.half_norm = arena.take<T>(padded);
  book.centre = arena.take<T>(header.dim);
  return arena.bytes();
}

// The books have constant arrays where only packing writes.
template <class T>
void copy(const T* to, const T* from, int64_t count) {
  std::memcpy(const_cast<T*>(to), from, count * sizeof(T));
}

template <class In>
std::vector<char> integers_of(const InstructionSet& set, const Int8Book<In>& book) {
  const ListedCodes<In>& codes = book.codes;
  Header header = header_for(set, Form::kIntegers, kElement<In>, codes.count, codes.dim);
  header.num_wide = book.num_wide;
  header.unit = book.unit;
  header.largest = book.largest;
  Int8Book<In> placed = book;
  header.bytes = place_integers<In>(nullptr, header, placed);
  std::vector<char> memory(header.bytes);
  place_integers(memory.data(), header, placed);
  std::memcpy(memory.data(), &header, sizeof header);
  copy(placed.groups, book.groups, book.num_groups * book.group_words());
  copy(placed.half_norm, book.half_norm, book.num_groups * book.group_codes);
  copy(placed.centre, book.centre, padded_dim(codes.dim));
  if (book.num_wide > 0) copy(placed.reflections, book.reflections, reflections_size(codes.dim));
  return memory;
}

template <class In>
std::vector<char> floats_of(const InstructionSet& set, const PackedBook<In>& book) {
  const ListedCodes<In>& codes = book.codes;
  Header header = header_for(set, Form::kFloats, kElement<In>, codes.count, codes.dim);
  header.scale = double(book.scale);
  header.max_norm = book.max_norm;
  header.first_usable = book.first_usable;
  PackedBook<In> placed = book;
  header.bytes = place_floats<In>(nullptr, header, placed);
  std::vector<char> memory(header.bytes);
  place_floats(memory.data(), header, placed);
  std::memcpy(memory.data(), &header, sizeof header);
  copy(placed.panels, book.panels, book.num_panels * book.width * codes.dim);
  copy(placed.half_norm, book.half_norm, book.num_panels * book.width);
  copy(placed.centre, book.centre, codes.dim);
  return memory;
}

// The memory for a codebook without a finite code.
template <class In>
std::vector<char> nothing_of(const InstructionSet& set, const Codes<In>& codes) {
  Header header = header_for(set, Form::kNone, kElement<In>, codes.count, codes.dim);
  header.bytes = sizeof header;
  std::vector<char> memory(sizeof header);
  std::memcpy(memory.data(), &header, sizeof header);
  return memory;
}

// Tries a few searches in integers, and returns whether they settle most rows. They do not beside a
// code that is far from all others, or among many copies. A row takes its elements in turn from two
// codes that lie apart in the codebook.
template <class In>
bool integers_serve(const Int8Filter<In>& filter, const Int8Book<In>& book,
                    const ThreadPool& pool) {
  constexpr int64_t kTrials = 32, kMostUnsettled = kTrials / 4;
  const ListedCodes<In>& codes = book.codes;
  std::vector<In> rows(kTrials * codes.dim);
  for (int64_t r = 0; r < kTrials; ++r) {
    const int64_t k = part_begin(codes.count, kTrials, r);
    const In* const of[] = {codes.row(k), codes.row((k + codes.count / 2) % codes.count)};
    for (int64_t d = 0; d < codes.dim; ++d) {
      rows[r * codes.dim + d] = of[d % 2][d * codes.element_stride];
    }
  }
  std::vector<int64_t> indices(kTrials), unsettled;
  std::vector<float> distances(kTrials);
  const Rows<const In> z{rows.data(), kTrials, codes.dim, kTrials, 0, codes.dim, 1};
  filter_packed_rows(filter, book, z, indices.data(), distances.data(), Rows<In>{}, pool,
                     unsettled);
  return int64_t(unsettled.size()) <= kMostUnsettled;
}

[[noreturn]] void refuse(const std::string& why) {
  throw std::invalid_argument("the packed codebook does not belong to this codebook: " + why);
}

// Returns the header of that memory, if it belongs to the codebook.
template <class In>
Header checked_header(const PackedBytes& packed, const Codes<In>& codes) {
  Header header;
  if (packed.size < int64_t{sizeof header}) refuse("it is too short");
  std::memcpy(&header, packed.data, sizeof header);
  if (header.layout != kLayout) refuse("it has another layout");
  if (header.element != kElement<In>) refuse("it has another dtype");
  if (header.count != codes.count || header.dim != codes.dim) {
    refuse("expected [K, D] = [" + std::to_string(codes.count) + ", " + std::to_string(codes.dim) +
           "], got [" + std::to_string(header.count) + ", " + std::to_string(header.dim) + "]");
  }
  if (header.first_usable < 0 || header.first_usable >= header.count) refuse("it is damaged");
  return header;
}

}  // namespace

template <class In>
std::vector<char> pack_for_searches(const Codes<In>& codes, const ThreadPool& pool) {
  const InstructionSet& set = instruction_set();
  const ListedCodes<In> all = list_all(codes);
  if constexpr (has_filter<In>) {
    const Int8Filter<In>* filter =
        set.filters == nullptr ? nullptr : set.filters->filter(static_cast<const In*>(nullptr));
    if (filter != nullptr && filter_packs(*filter, all)) {
      OwnedInt8Book<In> owned;
      if (pack_int8_book(*filter, all, Directions::kWidestFirst, pool, owned)) {
        if (integers_serve(*filter, owned.book, pool)) return integers_of(set, owned.book);
      } else if (!(owned.book.unit > 0)) {
        // Probably all codes are equal, so that a search takes the first.
        return nothing_of<In>(set, codes);
      }
    }
  }
  const OwnedBook<In> owned = pack_codebook(set.engine<In>(), all, pool);
  if (owned.book.first_usable < 0) return nothing_of<In>(set, codes);
  return floats_of(set, owned.book);
}

template <class In>
PackedForms<In> forms_in(const PackedBytes& packed, const Codes<In>& codes,
                         const InstructionSet& set) {
  PackedForms<In> forms;
  if (packed.size == 0) return forms;
  const Header header = checked_header(packed, codes);
  if (std::strncmp(header.instruction_set, set.name, sizeof header.instruction_set) != 0) {
    return forms;
  }
  void* const memory = const_cast<void*>(packed.data);  // only read
  int64_t bytes = header.form == Form::kNone ? int64_t{sizeof header} : -1;
  if (header.form == Form::kFloats) {
    const Engine<In>& engine = set.engine<In>();
    PackedBook<In>& book = forms.floats.emplace();
    book.codes = list_all(codes);
    book.width = engine.panel_width;
    book.num_panels = (codes.count + book.width - 1) / book.width;
    book.scale = Compute<In>(header.scale);
    book.max_norm = header.max_norm;
    book.first_usable = header.first_usable;
    bytes = place_floats(memory, header, book);
  }
  if constexpr (has_filter<In>) {
    if (header.form == Form::kIntegers && set.filters != nullptr &&
        (header.num_wide == 0 || header.num_wide == kWideDims)) {
      Int8Book<In>& book = forms.integers.emplace();
      book.codes = list_all(codes);
      book.group_codes = set.filters->filter(static_cast<const In*>(nullptr))->group_codes;
      book.num_groups = (codes.count + book.group_codes - 1) / book.group_codes;
      book.unit = header.unit;
      book.largest = header.largest;
      bytes = place_integers(memory, header, book);
    }
  }
  if (bytes != header.bytes || bytes > packed.size) refuse("its size is wrong");
  return forms;
}

#define VQVAE_FAST_INSTANTIATE(In)                                                   \
  template std::vector<char> pack_for_searches(const Codes<In>&, const ThreadPool&); \
  template PackedForms<In> forms_in(const PackedBytes&, const Codes<In>&, const InstructionSet&)
VQVAE_FAST_INSTANTIATE(float);
VQVAE_FAST_INSTANTIATE(double);
VQVAE_FAST_INSTANTIATE(BFloat16);
VQVAE_FAST_INSTANTIATE(Half);

}  // namespace vqvae_fast
