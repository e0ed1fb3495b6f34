"""This package's other GPU kernels, called without the dispatcher."""

import torch
from torch import Tensor

from vqvae_fast import _native, backends
from vqvae_fast.bench.peers.base import Search, SearchPeer


def _no_triton() -> str | None:
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    backend = backends.check("triton", "cuda")
    return None if backend.available else backend.reason


def _prepare_plain(z: Tensor, codebook: Tensor) -> Search:
    from vqvae_fast.backends.triton import ops

    return lambda: ops.nearest_code(z, codebook, packed_dtype=torch.float32)[0]


def no_extension() -> str | None:
    """Return why there are no CUDA kernels, or None."""
    return None if _native.cuda_extension else _native.cuda_reason


def _prepare_cuda(z: Tensor, codebook: Tensor) -> Search:
    return lambda: torch.ops.vqvae_fast_cuda.nearest_code(z, codebook)[0]


PLAIN = SearchPeer(
    "ours, Triton without the matrix unit",
    "the same kernels with float32 multiply-adds (packed_dtype=torch.float32)",
    _prepare_plain,
    _no_triton,
    ("float32",),
)

CUDA = SearchPeer(
    "ours, CUDA C++", "the compiled kernels, float32 multiply-adds", _prepare_cuda, no_extension
)
