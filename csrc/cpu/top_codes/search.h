// Searches one codebook for the k nearest codes of each row.
#pragma once

#include "../contract.h"
#include "../packed_codebook.h"
#include "../parallel.h"

namespace vqvae_fast {

// Writes int64 indices[N][k] and distances[N][k] (float, or double for double input), the nearest
// code first and the lowest index first among equals. k is from 1 to the number of codes. `packed`
// may be empty; the answers are the same.
template <class In>
void search_top_codes(const Rows<const In>& z, const Codes<In>& codes, const PackedBytes& packed,
                      int64_t k, int64_t* indices, Compute<In>* distances, const ThreadPool& pool);

}  // namespace vqvae_fast
