// Multiplies rows with a matrix.
#pragma once

#include "contract.h"
#include "parallel.h"

namespace vqvae_fast {

// Writes the rows through an affine map, [N][map.columns].
void project(const Affine<float>& map, const Rows<const float>& rows, float* out,
             const ThreadPool& pool);

}  // namespace vqvae_fast
