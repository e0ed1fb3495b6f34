// Searches with scores in integers: rules out the codes that a bound excludes, measures the others,
// and leaves the rows that have too many of them to the float32 search.
#pragma once

#include <type_traits>
#include <vector>

#include "../aligned_buffer.h"
#include "../parallel.h"
#include "book.h"

namespace vqvae_fast {

template <class In>
constexpr bool has_filter = !std::is_same_v<In, double>;

// Returns whether the filter may be quicker than the float search.
template <class In>
bool filter_serves(const Int8Filter<In>& filter, const Rows<const In>& z,
                   const ListedCodes<In>& codes, const ThreadPool& pool);

// Returns whether the filter may search such a codebook, however many rows there are.
template <class In>
bool filter_packs(const Int8Filter<In>& filter, const ListedCodes<In>& codes);

// An OwnedInt8Book is a codebook packed for the filter, with its memory.
template <class In>
struct OwnedInt8Book {
  Int8Book<In> book;
  std::vector<float> centre, reflections;
  Buffer groups;
  Buffer half_norm;
};

// Looking for wide directions pays if many rows are searched in the packed codebook.
enum class Directions { kAsTheyAre, kWidestFirst };

// Packs a codebook for the filter. Returns false if its values do not suit integers.
template <class In>
bool pack_int8_book(const Int8Filter<In>& filter, const ListedCodes<In>& codes,
                    Directions directions, const ThreadPool& pool, OwnedInt8Book<In>& owned);

// Writes the answers of the rows that a search in a packed codebook settles, and appends the others
// to `unsettled`.
template <class In>
void filter_packed_rows(const Int8Filter<In>& filter, const Int8Book<In>& book,
                        const Rows<const In>& z, int64_t* indices, float* distances,
                        const Rows<In>& quantized, const ThreadPool& pool,
                        std::vector<int64_t>& unsettled);

// Packs the codebook and does the same. Returns false, and writes nothing, if the codebook's values
// do not suit the filter.
template <class In>
bool filter_rows(const Int8Filter<In>& filter, const Rows<const In>& z,
                 const ListedCodes<In>& codes, int64_t* indices, float* distances,
                 const Rows<In>& quantized, const ThreadPool& pool,
                 std::vector<int64_t>& unsettled);

}  // namespace vqvae_fast
