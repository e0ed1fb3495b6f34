// Updates a codebook that is the moving average of the vectors that choose its codes.
#pragma once

#include "../contract.h"
#include "../parallel.h"

namespace vqvae_fast {

// Averages in one batch, in one pass over the codebook. n_k and s_k are the number and the sum of
// the rows of code k:
//
//   size_k    <- decay size_k    + (1 - decay) n_k
//   average_k <- decay average_k + (1 - decay) s_k
//   code_k    <- average_k / smoothed size_k,    smoothed: (size_k + eps) n / (n + K eps), n = sum
//   size
//
// sizes: [K], averages and codes: [K][D]. The elements of a row are contiguous. Rows with a
// negative index are left out. Returns false, and writes nothing, if an index is not below K.
template <class In>
bool moving_average(const Rows<const In>& src, const int64_t* indices, int64_t num_codes,
                    double decay, double eps, Compute<In>* sizes, Compute<In>* averages,
                    Compute<In>* codes, const ThreadPool& pool);

}  // namespace vqvae_fast
