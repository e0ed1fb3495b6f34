#pragma once

namespace vqvae_fast {

// Lets the kernels of ops.h serve torch.ops.vqvae_fast.* on CPU tensors, for good.
void register_kernels();

}  // namespace vqvae_fast
