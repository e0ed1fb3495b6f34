"""KeOps' lazy tensors: compiled C++ computes and reduces the N x K distances on the fly."""

import functools
import importlib
import os

import torch
from torch import Tensor

from vqvae_fast.bench.peers.base import Search, SearchPeer


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """Return argmin over sum((z - e)^2), which is symbolic until its reduction."""
    lazy = importlib.import_module("pykeops.torch").LazyTensor
    rows, codes = lazy(z[:, None]), lazy(codebook[None])
    found: Tensor = ((rows - codes) ** 2).sum(-1).argmin(dim=1)
    return found[:, 0]


@functools.cache
def _unavailable() -> str | None:
    """Returns why KeOps cannot run, by trying it: it needs a compiler for each new formula."""
    os.environ.setdefault("KEOPS_VERBOSE", "0")  # or its import reports that there is no CUDA
    try:
        importlib.import_module("pykeops").set_verbose(False)  # or it prints what it compiles
    except ModuleNotFoundError:
        return "pykeops is not installed (pip install vqvae_fast[bench])"
    except Exception as error:
        return f"pykeops is installed but does not import: {error}"
    try:
        nearest(torch.zeros(2, 1), torch.zeros(2, 1))
    except Exception as error:
        return f"pykeops does not compile here: {type(error).__name__}: {str(error)[:200]}"
    return None


def _prepare(z: Tensor, codebook: Tensor) -> Search:
    nearest(z[:2], codebook[:2])  # this compiles for this D and dtype
    return lambda: nearest(z, codebook)


PEER = SearchPeer(
    "KeOps",
    "LazyTensor, squared differences, argmin; its formula compiled before",
    _prepare,
    _unavailable,
    ("float32", "float64"),
    most_products=1e10,
)
