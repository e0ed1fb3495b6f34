"""Times the search with one file of tiles, in its own process, because import reads settings.

It compiles before it takes the device's lock, so that many processes compile at once and one at a
time measures. It writes one line of JSON: microseconds in a graph, and the share of wrong rows.
"""

import argparse
import contextlib
import fcntl
import json
import warnings
from pathlib import Path

import torch

import vqvae_fast
from benchmarks.gpu.device import Gpu
from benchmarks.gpu_first.device import device_of
from benchmarks.gpu_first.step import Setting
from vqvae_fast.bench.data import Shape, gaussian
from vqvae_fast.bench.exactness import smallest_distances, violating_share

_SAMPLE = 1024


def measure(gpu: Gpu, shape: Shape) -> dict[str, float]:
    """Search Gaussian data; return the time and the share of wrong rows."""
    z, codebook, _ = gaussian(shape, device=gpu.device)
    sample = slice(0, _SAMPLE)
    indices = vqvae_fast.nearest_code(z, codebook).indices
    wrong = violating_share(
        z[sample], codebook, indices[sample], smallest_distances(z[sample], codebook)
    )
    seconds = min(
        gpu.seconds_in_graph(lambda: vqvae_fast.nearest_code(z, codebook)) for _ in range(3)
    )
    return {"us": 1e6 * seconds, "violating": wrong}


def _compile(shape: Shape) -> None:
    """Fills Triton's cache without using the device."""
    from triton.backends.compiler import GPUTarget

    from benchmarks.gpu_check.offline import compiled_for
    from vqvae_fast.backends.triton import ops as kernels

    warnings.simplefilter("ignore")
    major, minor = torch.cuda.get_device_capability()
    z, codebook = torch.zeros(500, shape.d), torch.zeros(shape.k, shape.d)
    with compiled_for(GPUTarget("cuda", 10 * major + minor, 32)):
        kernels.nearest_code(z, codebook)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shape", type=Shape.parse)
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    if not options.rehearse:
        # An error here occurs again below, with its reason.
        with contextlib.suppress(Exception):
            _compile(options.shape)
    with options.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        gpu = device_of(Setting(Path(), rehearse=options.rehearse))
        print(json.dumps(measure(gpu, options.shape)), flush=True)


if __name__ == "__main__":
    main()
