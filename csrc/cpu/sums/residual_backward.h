// The backward pass of residual quantization.
#pragma once

#include "../contract.h"
#include "../parallel.h"

namespace vqvae_fast {

// The gradient of the rows z ([N], of elements that lie together), to out ([N][D]), given that of
// the sum of the codes, grad. indices: [N][stages], checked.
template <class In>
void residual_backward(const ResidualStages<In>& stages, const Rows<const In>& grad,
                       const Rows<const In>& z, const int64_t* indices, In* out,
                       const ThreadPool& pool);

}  // namespace vqvae_fast
