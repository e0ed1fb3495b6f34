"""scikit-learn's fused, chunked pairwise_distances_argmin."""

import torch
from torch import Tensor

from vqvae_fast.bench.peers.base import Search, SearchPeer, needs


def _prepare(z: Tensor, codebook: Tensor) -> Search:
    from sklearn.metrics import pairwise_distances_argmin

    rows, codes = z.numpy(), codebook.numpy()
    return lambda: torch.from_numpy(pairwise_distances_argmin(rows, codes))


PEER = SearchPeer(
    "scikit-learn",
    "pairwise_distances_argmin, its checks of the input included",
    _prepare,
    needs("sklearn", "scikit-learn"),
    ("float32", "float64"),
)
