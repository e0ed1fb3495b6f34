"""The eager formula on the matrix unit, which is faster for float32 but not exact."""

import torch
from torch import Tensor

from vqvae_fast.bench.peers.base import Search, SearchPeer
from vqvae_fast.bench.peers.torch_addmm import nearest


def _prepare_tf32(z: Tensor, codebook: Tensor) -> Search:
    def call() -> Tensor:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return nearest(z, codebook)
        finally:
            torch.set_float32_matmul_precision(before)

    return call


def _prepare_bfloat16(z: Tensor, codebook: Tensor) -> Search:
    return lambda: nearest(z.bfloat16(), codebook.bfloat16())


TF32 = SearchPeer(
    "torch addmm+argmin, TF32",
    "the same with float32 products in TF32 (set_float32_matmul_precision('high'))",
    _prepare_tf32,
    dtypes=("float32",),
)

BFLOAT16 = SearchPeer(
    "torch addmm+argmin, bfloat16",
    "float32 inputs rounded to bfloat16, and the same",
    _prepare_bfloat16,
    dtypes=("float32",),
)
