// Deterministic segment sums: every row is added to its segment in row order, in float64.
#pragma once

#include "../contract.h"
#include "../parallel.h"

namespace vqvae_fast {

// sums: [num_segments][D] and counts: [num_segments], zeros at the start: where segments are many
// and rows few, memory that came as zeros need not be touched. Rows with a negative index are left
// out. Returns false, with nothing written, where an index is not below num_segments.
template <class In>
bool segment_sum(const Rows<const In>& src, const int64_t* indices, int64_t num_segments,
                 Compute<In>* sums, Compute<In>* counts, const ThreadPool& pool);

}  // namespace vqvae_fast
