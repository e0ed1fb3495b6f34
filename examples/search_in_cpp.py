r"""Two searches written in C++, to be measured beside ours: does an idea pay?

    vqvae-fast bench --no-peers --shape 2048,8192,64 \
        --contender examples/search_in_cpp.py:plain --contender examples/search_in_cpp.py:panels

The C++ functions take raw pointers, so a compiler and ctypes are all that is needed to call them.
"""

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

ABREAST = 64  # codes that panels() scores together, as in the C++ file
SOURCE = Path(__file__).with_suffix(".cpp")


@cache
def library() -> ctypes.CDLL:
    """Compile the C++ file for this machine and load it."""
    built = Path(tempfile.mkdtemp()) / "search.so"
    fast = ["-O3", "-march=native", "-ffast-math", "-fno-finite-math-only"]
    command = ["c++", *fast, "-fopenmp", "-shared", "-fPIC", str(SOURCE), "-o", str(built)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(built))


def plain(z: Tensor, codebook: Tensor) -> Callable[[], Tensor]:
    """Return a call that measures every code; z: [N, D], codebook: [K, D], float32."""
    search = library().plain

    def call() -> Tensor:
        indices = torch.empty(len(z), dtype=torch.int64)
        search(*_pointers(z, codebook), *_sizes(z, codebook), *_pointers(indices))
        return indices

    return call


def panels(z: Tensor, codebook: Tensor) -> Callable[[], Tensor]:
    """Return a call that scores many codes at once; packing the codes is part of the call."""
    search = library().panels

    def call() -> Tensor:
        missing = -len(codebook) % ABREAST
        codes = pad(codebook, (0, 0, 0, missing)).view(-1, ABREAST, codebook.shape[1])
        packed = codes.transpose(1, 2).contiguous()
        half_norms = pad(codebook.square().sum(dim=1) / 2, (0, missing), value=torch.inf)
        indices = torch.empty(len(z), dtype=torch.int64)
        search(*_pointers(z, packed, half_norms), *_sizes(z, codebook), *_pointers(indices))
        return indices

    return call


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def _sizes(z: Tensor, codebook: Tensor) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(size) for size in (len(z), *codebook.shape)]
