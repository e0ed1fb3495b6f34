"""The Triton kernels: for CUDA tensors, or for CPU tensors in Triton's interpreter."""
