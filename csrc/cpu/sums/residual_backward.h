// Runs the backward pass of residual quantization.
#pragma once

#include "../contract.h"
#include "../parallel.h"

namespace vqvae_fast {

// Writes the gradient of the rows z to out ([N][D]), given `grad`, the gradient of the sum of the
// codes. The elements of a row of z are contiguous. indices: [N][stages], checked by the caller.
template <class In>
void residual_backward(const ResidualStages<In>& stages, const Rows<const In>& grad,
                       const Rows<const In>& z, const int64_t* indices, In* out,
                       const ThreadPool& pool);

}  // namespace vqvae_fast
