// Searches one codebook: packs it, divides the work, merges the parts.
#pragma once

#include "contract.h"
#include "packed_codebook.h"
#include "parallel.h"

namespace vqvae_fast {

// Writes int64 indices[N], distances[N] (float, or double for double input) and, if quantized.data
// is set, the chosen codes in quantized's strides. `packed` may be empty; the answers are the same.
template <class In>
void search_codebook(const Rows<const In>& z, const Codes<In>& codes, const PackedBytes& packed,
                     int64_t* indices, Compute<In>* distances, const Rows<In>& quantized,
                     const ThreadPool& pool);

// Returns how many rows of such a search the integer filter settles without the float search, or -1
// if the filter does not serve it. Tests call this, because the results do not show which search
// found them.
template <class In>
int64_t rows_settled_by_filter(const Rows<const In>& z, const Codes<In>& codes,
                               const PackedBytes& packed, const ThreadPool& pool);

}  // namespace vqvae_fast
