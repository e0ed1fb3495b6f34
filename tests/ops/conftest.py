from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from kernels import INSTRUCTION_SETS

import vqvae_fast
from vqvae_fast import _native, reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Implementation:
    """One of the ways in which a call can be served."""

    nearest_code: Callable
    quantize: Callable
    segment_sum: Callable


REFERENCE = Implementation(reference.nearest_code, reference.quantize, reference.segment_sum)
KERNELS = Implementation(
    lambda z, codebook: torch.ops.vqvae_fast.nearest_code(z, codebook),
    lambda z, codebook: torch.ops.vqvae_fast.quantize(z, codebook),
    lambda src, indices, count: torch.ops.vqvae_fast.segment_sum(src, indices, count),
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def restore() -> Iterator[None]:
    """Puts the instruction set and the number of threads back."""
    threads = torch.get_num_threads()
    isa = _native.extension.cpu_isa() if _native.extension else None
    yield
    torch.set_num_threads(threads)
    if isa is not None:
        _native.extension.set_cpu_isa(isa)


# In a process of Triton's interpreter (make test-interpret) its kernels serve the ops.
ALL = ["triton"] if _native.triton_interprets else ["reference", *INSTRUCTION_SETS]


@pytest.fixture(params=ALL)
def implementation(request: pytest.FixtureRequest, restore: None) -> Implementation:
    """The reference, and the kernels of every instruction set of this machine; or Triton's."""
    if request.param == "reference":
        return REFERENCE
    if request.param in INSTRUCTION_SETS:
        _native.extension.set_cpu_isa(request.param)
    return KERNELS


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def search_everywhere(restore: None) -> Callable:
    """Runs nearest_code in every instruction set; returns a list of (name, result)."""
    if not INSTRUCTION_SETS:
        pytest.skip("the C++ extension is not there")

    def run(z: torch.Tensor, codebook: torch.Tensor) -> list:
        results = []
        for isa in INSTRUCTION_SETS:
            _native.extension.set_cpu_isa(isa)
            results.append((isa, vqvae_fast.nearest_code(z, codebook)))
        return results

    return run
