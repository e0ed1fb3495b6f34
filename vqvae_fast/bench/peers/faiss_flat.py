"""FAISS IndexFlatL2, with and without the cost of a new codebook in each training step."""

from typing import Any

import torch
from torch import Tensor

from vqvae_fast.bench.peers.base import Search, SearchPeer, needs

_DTYPES = ("float32",)


def _index(codebook: Tensor) -> Any:
    import faiss

    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook.numpy())
    return index


def _indices(index: Any, z: Tensor) -> Tensor:
    return torch.from_numpy(index.search(z.numpy(), 1)[1])[:, 0]


def _prepare_search(z: Tensor, codebook: Tensor) -> Search:
    index = _index(codebook)
    return lambda: _indices(index, z)


def _prepare_with_add(z: Tensor, codebook: Tensor) -> Search:
    return lambda: _indices(_index(codebook), z)


SEARCH_ONLY = SearchPeer(
    "FAISS search",
    "search alone in an index that is already filled: generous, a training step would fill it",
    _prepare_search,
    needs("faiss", "faiss-cpu"),
    _DTYPES,
)

WITH_ADD = SearchPeer(
    "FAISS add+search",
    "a new index, the codebook added, and the search",
    _prepare_with_add,
    needs("faiss", "faiss-cpu"),
    _DTYPES,
)
