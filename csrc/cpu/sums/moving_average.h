// A codebook that is the moving average of the vectors that choose its codes, moved on by a batch.
#pragma once

#include "../contract.h"
#include "../parallel.h"

namespace vqvae_fast {

// With n_k and s_k the number and the sum of the rows of code k, in one pass over the codebook:
//
//   size_k    <- decay size_k    + (1 - decay) n_k
//   average_k <- decay average_k + (1 - decay) s_k
//   code_k    <- average_k / smoothed size_k,    smoothed: (size_k + eps) n / (n + K eps), n = sum
//   size
//
// sizes: [K], averages and codes: [K][D]. The elements of a row lie together; rows with a negative
// index are left out. Returns false, with nothing written, where an index is not below K.
template <class In>
bool moving_average(const Rows<const In>& src, const int64_t* indices, int64_t num_codes,
                    double decay, double eps, Compute<In>* sizes, Compute<In>* averages,
                    Compute<In>* codes, const ThreadPool& pool);

}  // namespace vqvae_fast
