// Finds the codes of a codebook that differ: a copy of an earlier code is chosen only after it.
#pragma once

#include <stdint.h>

#include <vector>

#include "../../rows.h"
#include "../parallel.h"

namespace vqvae_fast {

// Returns the places, ascending, of the codes that equal fewer than `most_copies` earlier ones.
// Codes are equal if their bits are, apart from the signs of zeros, on which no distance depends.
template <class In>
std::vector<int64_t> distinct_codes(const Codes<In>& codes, const ThreadPool& pool,
                                    int64_t most_copies = 1);

}  // namespace vqvae_fast
