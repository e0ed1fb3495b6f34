// Searches with scores in integers: rules out the codes that a bound excludes, measures the others,
// and leaves the rows that have too many of them to the float32 search.
#pragma once

#include <type_traits>
#include <vector>

#include "../parallel.h"
#include "book.h"

namespace vqvae_fast {

template <class In>
constexpr bool has_filter = !std::is_same_v<In, double>;

// Returns whether the filter may be quicker than the float search.
template <class In>
bool filter_serves(const Int8Filter<In>& filter, const Rows<const In>& z,
                   const ListedCodes<In>& codes, const ThreadPool& pool);

// Writes the answers of the rows that it settles and appends the others to `unsettled`. Returns
// false, and writes nothing, if the codebook's values do not suit the filter.
template <class In>
bool filter_rows(const Int8Filter<In>& filter, const Rows<const In>& z,
                 const ListedCodes<In>& codes, int64_t* indices, float* distances,
                 const Rows<In>& quantized, const ThreadPool& pool,
                 std::vector<int64_t>& unsettled);

}  // namespace vqvae_fast
