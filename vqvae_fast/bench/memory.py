"""Measures the peak memory of one call, in a process of its own.

``measure`` starts ``python -m vqvae_fast.bench.memory`` with settings that make malloc return freed
memory and map every larger block, so that resident memory follows allocations. The child makes the
inputs, warms up on a few rows (thread pools, lazily loaded code), resets the kernel's high-water
mark and makes the call. The kernel counts resident pages in batches, so a figure is accurate to a
few hundred KiB. Only Linux has this mark; elsewhere the figure is None.
"""

import ctypes
import gc
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqvae_fast.bench.data import Shape, feature_map, gaussian
from vqvae_fast.bench.peers import LAYER_PEERS, SEARCH_PEERS

SEARCH = "vqvae_fast.bench.memory:search_call"
LAYER = "vqvae_fast.bench.memory:layer_call"
_MIB = 1 << 20
_WARM_UP = 64


class PeakMemory(NamedTuple):
    """The rise of resident memory to its peak during a call, in bytes; also without outputs."""

    total: int
    beside_outputs: int


def search_bound(shape: Shape, itemsize: int = 4) -> int:
    """Return the bytes a search may use beside inputs and outputs: a packed codebook and 16 MiB."""
    return shape.k * shape.d * itemsize + 16 * _MIB


def measure(maker: str, name: str, shape: Shape, threads: int) -> PeakMemory | None:
    """Measure the peak memory of one call at a shape, float32, on Gaussian data.

    Args:
        maker: "module:function" of the function that makes the call from ``name`` and the shape,
            after a warm-up on a few rows: :data:`SEARCH`, :data:`LAYER` or another.
        name: the name of the contender.
        shape: the shape of the data.
        threads: the number of threads of the call.

    Returns:
        The peak memory; None if the kernel has no high-water mark that can be reset.

    Raises:
        RuntimeError: the child failed; its last lines are in the message.
    """
    environment = os.environ | {
        "MALLOC_TRIM_THRESHOLD_": "0",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": str(threads),
    }
    done = subprocess.run(
        [sys.executable, "-m", __name__, maker, name, *map(str, shape), str(threads)],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {name} failed: {done.stderr.strip()[-500:]}")
    figures = json.loads(done.stdout.splitlines()[-1])
    return PeakMemory(*figures) if figures else None


def _resident(field: str) -> int:
    """Returns VmRSS or VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def available() -> int | None:
    """Return the bytes a new process can have without swapping; None if the kernel does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return next((int(kibibytes) * 1024 for kibibytes in found), None)


def too_large(matrices: int, shape: Shape, itemsize: int = 4) -> str | None:
    """Return why this many matrices [N, K] do not fit in memory now, or None if they do."""
    there, needed = available(), matrices * itemsize * shape.n * shape.k
    if there is None or needed <= 0.8 * there:
        return None
    return f"would need {needed / 2**30:.0f} GiB for N x K numbers"


def peak_of(call: Callable[[], Iterable[Any]]) -> PeakMemory | None:
    """Measure the peak memory of a call that returns a tuple, in this process.

    This is accurate for large blocks. :func:`measure` also sees small blocks, which malloc takes
    from memory that it has kept.

    Returns:
        The peak memory; None if the kernel has no high-water mark that can be reset.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
    except (OSError, AttributeError, KeyError):
        return None
    outputs = call()
    total = max(0, _resident("VmHWM") - before)
    kept = sum(t.untyped_storage().nbytes() for t in outputs if isinstance(t, Tensor))
    return PeakMemory(total, max(0, total - kept))


def search_call(name: str, shape: Shape) -> Callable[[], Any]:
    """Return the call to measure, after a warm-up on a few rows and codes."""
    if name == "ours":
        from vqvae_fast import nearest_code  # both of its results count as outputs

        z, codebook, _ = gaussian(shape)
        nearest_code(z[:_WARM_UP], codebook[:_WARM_UP])
        return lambda: nearest_code(z, codebook)
    peer = next(peer for peer in SEARCH_PEERS if peer.name == name)
    z, codebook, _ = gaussian(shape)
    peer.prepare(z[:_WARM_UP].contiguous(), codebook[:_WARM_UP].contiguous())()
    search = peer.prepare(z, codebook)
    return lambda: (search(),)


def layer_call(name: str, shape: Shape) -> Callable[[], Any]:
    """Return a layer's training step, after a warm-up step on a few rows."""
    peer = next(peer for peer in LAYER_PEERS if peer.name == name)
    z, codebook, _ = gaussian(shape)
    peer.build(feature_map(z[:_WARM_UP]), codebook)()
    return peer.build(feature_map(z), codebook)


def main(arguments: list[str]) -> None:
    """Print [total, without outputs] in bytes as JSON, or null; this runs in the child process."""
    maker, name, *numbers = arguments
    *shape, threads = map(int, numbers)
    torch.set_num_threads(threads)
    print(json.dumps(peak_of(pkgutil.resolve_name(maker)(name, Shape(*shape)))))


if __name__ == "__main__":
    main(sys.argv[1:])
