"""The ops as Triton kernels, for CUDA tensors, or for CPU tensors in Triton's interpreter."""

from vqvae_fast.backends.triton.backward import quantize_backward
from vqvae_fast.backends.triton.kept_books import pack_codebook
from vqvae_fast.backends.triton.residual import (
    residual_nearest_code,
    residual_nearest_packed_code,
)
from vqvae_fast.backends.triton.search import (
    nearest_code,
    nearest_packed_code,
    quantize,
    quantize_packed,
)
from vqvae_fast.backends.triton.segment_sum import segment_sum

__all__ = [
    "nearest_code",
    "nearest_packed_code",
    "pack_codebook",
    "quantize",
    "quantize_backward",
    "quantize_packed",
    "residual_nearest_code",
    "residual_nearest_packed_code",
    "segment_sum",
]
