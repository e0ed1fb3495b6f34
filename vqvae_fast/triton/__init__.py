"""The ops as Triton kernels, for CUDA tensors, or for CPU tensors in Triton's interpreter."""

from vqvae_fast.triton.search import nearest_code, quantize

__all__ = ["nearest_code", "quantize"]
