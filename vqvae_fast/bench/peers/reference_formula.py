"""The formula of the reference VQ-VAE: all N x K squared distances, then argmin."""

import torch
from torch import Tensor

from vqvae_fast.bench.peers.base import Search, SearchPeer


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """Return argmin over |z|^2 + |e|^2 - 2 z.e, as the reference VQ-VAE computes it."""
    squared = z.square().sum(dim=1, keepdim=True) + codebook.square().sum(dim=1)
    return (squared - 2.0 * torch.matmul(z, codebook.T)).argmin(dim=1)


def _prepare(z: Tensor, codebook: Tensor) -> Search:
    return lambda: nearest(z, codebook)


PEER = SearchPeer(
    "reference VQ-VAE formula",
    "both norms, product, sum and argmin, eager",
    _prepare,
    matrices=3,
)
