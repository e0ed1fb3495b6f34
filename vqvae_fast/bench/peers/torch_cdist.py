"""PyTorch's pairwise distances, then argmin."""

import torch
from torch import Tensor

from vqvae_fast.bench.peers.base import Search, SearchPeer


def _prepare(z: Tensor, codebook: Tensor) -> Search:
    return lambda: torch.cdist(z, codebook).argmin(dim=1)


PEER = SearchPeer(
    "torch cdist+argmin",
    "cdist in its default mode (a product above 25 rows) and argmin, eager",
    _prepare,
    dtypes=("float32", "float64"),
    matrices=1,
)
