"""The ops as Triton kernels, for CUDA tensors, or for CPU tensors in Triton's interpreter."""

from vqvae_fast.backends.triton.backward import quantize_backward
from vqvae_fast.backends.triton.residual import residual_nearest_code
from vqvae_fast.backends.triton.search import nearest_code, quantize
from vqvae_fast.backends.triton.segment_sum import segment_sum

__all__ = ["nearest_code", "quantize", "quantize_backward", "residual_nearest_code", "segment_sum"]
