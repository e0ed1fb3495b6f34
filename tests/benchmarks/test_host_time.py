"""What a GPU search costs the host: launches, allocations and plans, counted without a GPU."""

from collections import Counter

import pytest

pytest.importorskip("triton")

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode

if triton.knobs.runtime.interpret:
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from benchmarks import host_time
from vqvae_fast.backends.triton import launch, search
from vqvae_fast.backends.triton import ops as kernels
from vqvae_fast.bench.data import Shape

LITTLE, MUCH = (2048, 1024, 16), (4096, 4096, 16)
# What a launcher is given: the grid, six values of Triton's own, then the kernel's arguments.
GRID, BEHIND_TRITONS_OWN = 3, 9


class Calls(TorchDispatchMode):
    """Counts torch's operations."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names[func.name()] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launcher():
    with host_time.made_up_h100() as launcher:
        yield launcher


def pair(n, k, d):
    return torch.randn(n, d), torch.randn(k, d)


@pytest.mark.parametrize(
    ("shape", "launches", "fills"), [(LITTLE, 1, 0), (MUCH, 6, 1), ((16, 8192, 64), 1, 1)]
)
def test_a_call_allocates_once_beside_its_results(launcher, shape, launches, fills):
    z, codebook = pair(*shape)
    kernels.quantize(z, codebook)
    before = launcher.count
    with Calls() as calls:
        kernels.quantize(z, codebook)
    assert launcher.count - before == launches
    assert calls.names.pop("aten::empty_like") == 1  # quantized
    assert calls.names.pop("aten::empty.memory_format") == 3  # indices, distances, the arena
    assert calls.names.pop("aten::zero_", 0) == fills
    assert set(calls.names) <= {"aten::slice.Tensor", "aten::detach"}


def test_a_plan_is_kept_for_a_layout(launcher):
    z, codebook = pair(*LITTLE)
    for _ in range(3):
        kernels.nearest_code(z, codebook)
    assert search.planned.cache_info()[:2] == (2, 1)  # found, made
    for other in (z[:-1], z.view(2, -1, 16), z.bfloat16()):
        kernels.nearest_code(other, codebook.to(other.dtype))
    kernels.quantize(z, codebook)
    kernels.nearest_code(z, codebook.T.contiguous().T)
    assert search.planned.cache_info()[:2] == (2, 6)


@pytest.mark.parametrize("shape", [LITTLE, MUCH])
@pytest.mark.parametrize("shift", [0, 1])
def test_a_kept_launch_is_given_what_triton_gives(launcher, monkeypatch, shape, shift):
    """Shifted by an element, z is compiled for and launched without wide loads."""
    n, k, d = shape
    z, codebook = torch.randn(n * d + 1)[shift:][: n * d].view(n, d), torch.randn(k, d)
    kept = launch.Plan.arena
    arena = []

    def same_arena(plan, device):
        arena.extend([] if arena else [kept(plan, device)])
        return arena[0]

    monkeypatch.setattr(launch.Plan, "arena", same_arena)
    results = search._results(z)
    monkeypatch.setattr(search, "_results", lambda z: results)

    def last_launch():
        kernels.nearest_code(z, codebook)
        return [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in launcher.last]

    kernels.nearest_code(*pair(*shape))  # aligned: another kernel where z is shifted
    first, second = last_launch(), last_launch()
    assert not any(isinstance(a, torch.Tensor) for a in launcher.last)
    assert second[BEHIND_TRITONS_OWN:] == first[BEHIND_TRITONS_OWN:]
    assert second[:GRID] == first[:GRID]


def test_an_unknown_version_is_launched_as_triton_launches(launcher, monkeypatch):
    monkeypatch.setattr(triton, "__version__", "3.99.0")
    z, codebook = pair(*LITTLE)
    for _ in range(2):
        kernels.nearest_code(z, codebook)
        assert any(isinstance(a, torch.Tensor) for a in launcher.last)


def test_a_call_takes_80_us_of_the_host_at_most(launcher):
    for shape in (LITTLE, MUCH):
        z, codebook = pair(*shape)
        times = host_time.microseconds(lambda z=z, c=codebook: kernels.quantize(z, c), rounds=15)
        assert min(times) < 80


def test_the_benchmark_says_what_was_measured(tmp_path):
    out = tmp_path / "host_time.json"
    record = host_time.main(["--quick", "--json", str(out)])
    (entry,) = record["results"]
    assert Shape(**entry["shape"]) == host_time.QUICK[0]
    assert entry["launches"] == 1
    assert "as Triton launches" in out.with_suffix(".md").read_text()
    assert all(times[0] > 0 for times in entry["microseconds"].values())
