"""Tests on a CUDA device, for each of its backends.

They are collected only where there is such a device. All tensors that a test makes without naming a
device lie there, so the tests of tests/ops run here as they are. VQVAE_FAST_GPU_TESTS=cpu rehearses
on a CPU what does not depend on CUDA itself.
"""

import os
from collections.abc import Iterator

import pytest
import torch
from kernels import DTYPES, KERNELS, Implementation

from vqvae_fast import backends, settings

_REHEARSED = os.environ.get("VQVAE_FAST_GPU_TESTS") == "cpu"
_BACKENDS = (
    [backends.chosen("cpu").name] if _REHEARSED else ["triton", "triton in one launch", "cuda"]
)
collect_ignore_glob = [] if _REHEARSED or torch.cuda.is_available() else ["test_*.py"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device under test; without one the test says that it was skipped."""
    if _REHEARSED:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """The device, for tests of what only CUDA has."""
    if device.type != "cuda":
        pytest.skip("streams, graphs and memory of CUDA cannot be rehearsed on a CPU")
    return device


@pytest.fixture(params=_BACKENDS, autouse=True)
def served_by(
    request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The ops on the device are served by this one, and new tensors lie there."""
    if not _REHEARSED:
        name, _, one_launch = request.param.partition(" ")
        found = next(b for b in backends.backends(device) if b.name == name)
        if not found.available:
            pytest.skip(f"{found.title}: {found.reason}")
        monkeypatch.setattr(settings, "current", settings.Settings(backend=name))
        if name == "triton":
            form = "direct" if one_launch else "filter"
            monkeypatch.setattr("vqvae_fast.backends.triton.search.forced_form", form)
    backends.kernels.cache_clear()
    torch.set_default_device(device)
    torch.manual_seed(0)
    yield request.param.partition(" ")[0]
    torch.set_default_device(None)
    backends.kernels.cache_clear()


@pytest.fixture
def implementation() -> Implementation:
    """The ops, through the dispatcher."""
    return KERNELS


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param
