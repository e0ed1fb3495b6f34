"""torch.compile of the addmm formula, specialised to each shape; compilation is not timed."""

import os
import shutil
import warnings

import torch
from torch import Tensor

from vqvae_fast.bench.peers.base import Search, SearchPeer
from vqvae_fast.bench.peers.torch_addmm import nearest


def _unavailable() -> str | None:
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "c++", "clang++")):
        return "torch.compile needs a C++ compiler on the CPU and none was found"
    return None


def _prepare(z: Tensor, codebook: Tensor) -> Search:
    # The compiler is reset for each shape, because the sixth would reach the recompile limit.
    torch._dynamo.reset()
    compiled = torch.compile(nearest, dynamic=False, fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's compiler warns about its own deprecated parts
        compiled(z, codebook)
    return lambda: compiled(z, codebook)


PEER = SearchPeer(
    "torch.compile",
    "the compiled addmm+argmin (dynamic=False, fullgraph); compilation excluded",
    _prepare,
    _unavailable,
    matrices=1,
)
