// Computes deterministic segment sums: every row is added to its segment in row order, in float64.
#pragma once

#include "../contract.h"
#include "../parallel.h"

namespace vqvae_fast {

// Writes sums: [num_segments][D] and counts: [num_segments]. Both must be zeros at the start, so
// that few rows in many segments touch little memory. Rows with a negative index are left out.
// Returns false, and writes nothing, if an index is not below num_segments.
template <class In>
bool segment_sum(const Rows<const In>& src, const int64_t* indices, int64_t num_segments,
                 Compute<In>* sums, Compute<In>* counts, const ThreadPool& pool);

}  // namespace vqvae_fast
