// Finds the codes of a codebook that differ: a copy of an earlier code is never chosen.
#pragma once

#include <stdint.h>

#include <vector>

#include "../../rows.h"
#include "../parallel.h"

namespace vqvae_fast {

// Returns the places, ascending, of the codes that equal no earlier one. Codes are equal if their
// bits are, apart from the signs of zeros, on which no distance depends.
template <class In>
std::vector<int64_t> distinct_codes(const Codes<In>& codes, const ThreadPool& pool);

}  // namespace vqvae_fast
