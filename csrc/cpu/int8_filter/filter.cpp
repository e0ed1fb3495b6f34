#include "filter.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "../../elements.h"
#include "../aligned_buffer.h"
#include "../codes/gather.h"
#include "../contract.h"
#include "../division.h"
#include "../float_search/owned_book.h"

namespace vqvae_fast {
namespace {

// Against fewer codes the work per row costs more than the filter saves.
constexpr int64_t kFewestCodes = 256;
// The smallest unit of the codes' integers: its square is an ordinary number in float32.
constexpr float kSmallestUnit = 0x1p-47f;
// The filter looks for wide directions if the search has so many multiply-adds, because then
// looking costs little.
#ifdef VQVAE_FAST_TEST_SMALL_AS_LARGE
constexpr double kWideWork = 0;
#else
constexpr double kWideWork = 1 << 27;
#endif
// A thread reads at least so many bytes of a packed codebook if the codes are divided, because it
// takes about as long to wake it.
#ifdef VQVAE_FAST_TEST_SMALL_AS_LARGE
constexpr int64_t kLeastBytes = 1;
#else
constexpr int64_t kLeastBytes = 1 << 19;
#endif
// Codes of more bytes than this do not stay in the L2 from one call to the next.
#ifdef VQVAE_FAST_TEST_SMALL_AS_LARGE
constexpr int64_t kFarBytes = 0;
#else
constexpr int64_t kFarBytes = 1 << 20;
#endif
// The filter judges its success again after at most so many rows.
constexpr int64_t kLargestChunk = 256;

template <class In>
int64_t num_tiles(const Int8Filter<In>& filter, int64_t rows) {
  return (rows + filter.tile_rows - 1) / filter.tile_rows;
}

// Returns a centre for the codebook, the mean of some codes spread over it. Any centre is correct;
// a good one makes the numbers small and the bound tight.
template <class In>
std::vector<float> mean_code(const ListedCodes<In>& codes) {
  constexpr int64_t kSamples = 64;
  const int64_t samples = std::min(codes.count, kSamples);
  std::vector<float> mean(padded_dim(codes.dim)), sample(codes.dim);
  float count = 0;
  for (int64_t s = 0; s < samples; ++s) {
    const In* code = codes.row(part_begin(codes.count, samples, s));
    bool finite = true;
    for (int64_t d = 0; d < codes.dim; ++d) {
      sample[d] = widen(code[d * codes.element_stride]);
      finite &= std::isfinite(sample[d]);
    }
    if (!finite) continue;
    ++count;
    for (int64_t d = 0; d < codes.dim; ++d) mean[d] += sample[d];
  }
  for (float& m : mean) m = std::isfinite(m) ? m / std::max(count, 1.0f) : 0;
  return mean;
}

// Chooses the centre and the directions that get 16 bits.
template <class In>
void choose_directions(const Int8Filter<In>& filter, const ListedCodes<In>& codes,
                       Directions directions, OwnedInt8Book<In>& owned) {
  owned.centre = mean_code(codes);
  owned.book.centre = owned.centre.data();
  owned.book.num_wide = 0;
  if (directions == Directions::kAsTheyAre) return;
  owned.reflections.resize(reflections_size(codes.dim));
  owned.book.reflections = owned.reflections.data();
  const Buffer scratch = allocate(filter.wide_scratch_bytes(codes.dim));
  owned.book.num_wide =
      filter.find_wide(codes, owned.book.centre, scratch.get(), owned.reflections.data());
}

// Searches for rows [begin, end) a chunk at a time, and appends those that it does not settle to
// `unsettled`. found(row) says where the nearest codes of rows from `row` on are written;
// finish(first, last, left) is called for each chunk, with its unsettled rows.
template <class In, class Found, class Finish>
void search_chunks(const Int8Filter<In>& filter, const Int8Book<In>& book, const Rows<const In>& z,
                   int64_t begin, int64_t end, Found found, Finish finish,
                   std::vector<int64_t>& unsettled) {
  const ListedCodes<In>& codes = book.codes;
  // The candidates of more rows bring the codes into the cache.
  const bool codes_are_far =
      end - begin <= kLargestChunk && codes.count * codes.dim * int64_t{sizeof(In)} > kFarBytes;
  const int64_t chunk = kLargestChunk / filter.block_rows * filter.block_rows;
  const Buffer scratch = allocate(filter.scratch_bytes(book, end - begin));
  std::vector<int64_t> left;
  for (int64_t row = begin; row < end; row += chunk) {
    const int64_t last = std::min(row + chunk, end);
    // If the filter leaves too many rows unsettled, skip it for the rest.
    if (int64_t(unsettled.size()) * 4 > (row - begin) + chunk) {
      for (int64_t r = row; r < end; ++r) unsettled.push_back(r);
      break;
    }
    const Nearest of_chunk = found(row);
    left.resize(last - row);
    left.resize(filter.search(book, z, row, last, codes_are_far, scratch.get(), of_chunk.indices,
                              of_chunk.distances, left.data()));
    finish(row, last, left);
    unsettled.insert(unsettled.end(), left.begin(), left.end());
  }
}

}  // namespace

template <class In>
bool filter_packs(const Int8Filter<In>& filter, const ListedCodes<In>& codes) {
  return codes.count >= kFewestCodes && codes.dim >= filter.smallest_dim &&
         codes.dim <= kInt8LargestDim;
}

template <class In>
bool pack_int8_book(const Int8Filter<In>& filter, const ListedCodes<In>& codes,
                    Directions directions, const ThreadPool& pool, OwnedInt8Book<In>& owned) {
  Int8Book<In>& book = owned.book;
  book.codes = codes;
  book.group_codes = filter.group_codes;
  book.num_groups = (codes.count + book.group_codes - 1) / book.group_codes;
  choose_directions(filter, codes, directions, owned);
  const int64_t parts = std::clamp<int64_t>(codes.count * codes.dim / kPackWork, 1,
                                            std::min(pool.num_threads, book.num_groups));
  std::vector<Buffer> scratch;
  for (int64_t i = 0; i < parts; ++i) {
    scratch.push_back(allocate(filter.pack_scratch_bytes(codes.dim)));
  }
  std::vector<Int8Extent> extents(parts);
  pool.run(parts, [&](int64_t i) {
    extents[i] = filter.extent(book, part_begin(book.num_groups, parts, i),
                               part_begin(book.num_groups, parts, i + 1), scratch[i].get());
  });
  Int8Extent extent{0, 0};
  for (const Int8Extent& part : extents) extent.raise_to(part);
  book.unit = float(extent.unit(kLargestNarrow));
  if (!(book.unit >= kSmallestUnit && std::max(extent.wide, extent.narrow) <= kLargestElement)) {
    return false;
  }
  owned.groups = allocate(book.num_groups * book.group_words() * int64_t{sizeof(int32_t)});
  owned.half_norm = allocate(book.num_groups * book.group_codes * int64_t{sizeof(float)});
  book.groups = static_cast<int32_t*>(owned.groups.get());
  book.half_norm = static_cast<float*>(owned.half_norm.get());
  std::vector<Int8Sizes> sizes(parts);
  pool.run(parts, [&](int64_t i) {
    sizes[i] = filter.pack(book, part_begin(book.num_groups, parts, i),
                           part_begin(book.num_groups, parts, i + 1), scratch[i].get());
  });
  book.largest = {};
  for (const Int8Sizes& part : sizes) book.largest.raise_to(part);
  return true;
}

template <class In>
bool filter_serves(const Int8Filter<In>& filter, const Rows<const In>& z,
                   const ListedCodes<In>& codes, const ThreadPool& pool) {
  // If there are fewer tiles than threads, the float search serves, because it divides the codes
  // too.
  return 2 * num_tiles(filter, z.count) >= pool.num_threads && filter_packs(filter, codes) &&
         codes.count * codes.dim >= filter.fewest_elements;
}

template <class In>
void filter_packed_rows(const Int8Filter<In>& filter, const Int8Book<In>& book,
                        const Rows<const In>& z, int64_t* indices, float* distances,
                        const Rows<In>& quantized, const ThreadPool& pool,
                        std::vector<int64_t>& unsettled) {
  const int64_t row_parts = std::min(pool.num_threads, num_tiles(filter, z.count));
  const int64_t bytes = book.num_groups * book.group_words() * int64_t{sizeof(int32_t)};
  const int64_t code_parts = std::clamp<int64_t>(
      bytes / kLeastBytes, 1, std::min(pool.num_threads / row_parts, book.num_groups));
  const auto begin_of = [&](int64_t part) { return part_begin(z.count, row_parts, part); };
  // Sets the answers of rows whose nearest codes are known.
  const auto finish = [&](int64_t first, int64_t last, const std::vector<int64_t>& left) {
    for (const int64_t row : left) indices[row] = kAnyCode;
    keep_in_bounds(indices, first, last, book.codes.count);
    gather(book.codes, indices, quantized, first, last);
    for (int64_t row = first; row < last; ++row) indices[row] = book.codes.place(indices[row]);
  };
  std::vector<std::vector<int64_t>> unsettled_of(row_parts * code_parts);

  if (code_parts == 1) {
    pool.run(row_parts, [&](int64_t part) {
      double exact[kLargestChunk];
      search_chunks(
          filter, book, z, begin_of(part), begin_of(part + 1),
          [&](int64_t row) { return Nearest{indices + row, exact}; },
          [&](int64_t first, int64_t last, const std::vector<int64_t>& left) {
            for (int64_t row = first; row < last; ++row) distances[row] = float(exact[row - first]);
            finish(first, last, left);
          },
          unsettled_of[part]);
    });
  } else {
    std::vector<int64_t> all_indices(code_parts * z.count);
    std::vector<double> all_distances(code_parts * z.count);
    const auto found = [&](int64_t c, int64_t row) {
      return Nearest{all_indices.data() + c * z.count + row,
                     all_distances.data() + c * z.count + row};
    };
    pool.run(row_parts * code_parts, [&](int64_t task) {
      const int64_t r = task / code_parts, c = task % code_parts;
      const int64_t first_group = part_begin(book.num_groups, code_parts, c);
      const int64_t last_group = part_begin(book.num_groups, code_parts, c + 1);
      search_chunks(
          filter, book.part(first_group, last_group), z, begin_of(r), begin_of(r + 1),
          [&](int64_t row) { return found(c, row); },
          [&](int64_t first, int64_t last, const std::vector<int64_t>&) {
            for (int64_t row = first; row < last; ++row) {
              int64_t& index = *found(c, row).indices;
              if (index != kNoCode) index += first_group * book.group_codes;
            }
          },
          unsettled_of[task]);
    });
    for (int64_t r = 0; r < row_parts; ++r) {
      std::vector<Nearest> parts;
      std::vector<int64_t> left;
      for (int64_t c = 0; c < code_parts; ++c) {
        parts.push_back(found(c, begin_of(r)));
        std::vector<int64_t>& of_part = unsettled_of[r * code_parts + c];
        left.insert(left.end(), of_part.begin(), of_part.end());
        of_part.clear();
      }
      std::sort(left.begin(), left.end());
      left.erase(std::unique(left.begin(), left.end()), left.end());
      merge(parts, begin_of(r + 1) - begin_of(r), indices + begin_of(r), distances + begin_of(r));
      finish(begin_of(r), begin_of(r + 1), left);
      unsettled_of[r * code_parts] = left;
    }
  }
  for (const auto& left : unsettled_of) {
    unsettled.insert(unsettled.end(), left.begin(), left.end());
  }
}

template <class In>
bool filter_rows(const Int8Filter<In>& filter, const Rows<const In>& z,
                 const ListedCodes<In>& codes, int64_t* indices, float* distances,
                 const Rows<In>& quantized, const ThreadPool& pool,
                 std::vector<int64_t>& unsettled) {
  const double work = double(z.count) * double(codes.count) * double(codes.dim);
  const Directions directions =
      work < kWideWork ? Directions::kAsTheyAre : Directions::kWidestFirst;
  OwnedInt8Book<In> owned;
  if (!pack_int8_book(filter, codes, directions, pool, owned)) {
    if (owned.book.unit > 0) return false;
    // No usable code differs from the mean by more than a subnormal, so all codes are probably
    // equal. The float search would measure them all before the caller looks for equal codes, so
    // every row becomes unsettled here.
    unsettled.resize(z.count);
    std::iota(unsettled.begin(), unsettled.end(), 0);
    return true;
  }
  filter_packed_rows(filter, owned.book, z, indices, distances, quantized, pool, unsettled);
  return true;
}

#define VQVAE_FAST_INSTANTIATE(In)                                                                \
  template bool filter_packs(const Int8Filter<In>&, const ListedCodes<In>&);                      \
  template bool pack_int8_book(const Int8Filter<In>&, const ListedCodes<In>&, Directions,         \
                               const ThreadPool&, OwnedInt8Book<In>&);                            \
  template void filter_packed_rows(const Int8Filter<In>&, const Int8Book<In>&,                    \
                                   const Rows<const In>&, int64_t*, float*, const Rows<In>&,      \
                                   const ThreadPool&, std::vector<int64_t>&);                     \
  template bool filter_serves(const Int8Filter<In>&, const Rows<const In>&,                       \
                              const ListedCodes<In>&, const ThreadPool&);                         \
  template bool filter_rows(const Int8Filter<In>&, const Rows<const In>&, const ListedCodes<In>&, \
                            int64_t*, float*, const Rows<In>&, const ThreadPool&,                 \
                            std::vector<int64_t>&)
VQVAE_FAST_INSTANTIATE(float);
VQVAE_FAST_INSTANTIATE(BFloat16);
VQVAE_FAST_INSTANTIATE(Half);

}  // namespace vqvae_fast
