"""Times the package's main functions and prints JSON, for ``compare_revisions``.

The script uses torch and the public names of ``vqvae_fast`` only, so that it measures whichever
package is imported. It leaves out functions that a revision does not have.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch

import vqvae_fast
from vqvae_fast import nn

_TURN_SECONDS = 0.15
SEARCHES = ((2048, 512, 64), (16384, 1024, 8), (4096, 8192, 64), (2048, 65536, 32), (64, 1024, 64))
LAYERS = ((2048, 512, 64), (2048, 8192, 64))
SUMS = ((65536, 8192, 64), (2048, 512, 64))


def searches(name: str, n: int, k: int, d: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield searches: Gaussian float32 and bfloat16, and codes that differ in few directions."""
    z, codebook = torch.randn(n, d), torch.randn(k, d)
    scale = torch.logspace(1, -1, d)
    yield f"search {name}", lambda: vqvae_fast.nearest_code(z, codebook)
    z16, codebook16 = z.bfloat16(), codebook.bfloat16()
    yield f"search {name}, bfloat16", lambda: vqvae_fast.nearest_code(z16, codebook16)
    wide_z, wide_codebook = z * scale, codebook * scale
    yield f"search {name}, stretched", lambda: vqvae_fast.nearest_code(wide_z, wide_codebook)


def layers(name: str, n: int, k: int, d: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield a training step of the layer, with both ways of learning, and inference."""
    fmap = torch.randn(n // 64, d, 8, 8)
    for learning in ("ema", "gradient"):
        layer = nn.VectorQuantizer(k, d, learning=learning)
        with torch.no_grad():
            layer.set_codebook(torch.randn(k, d))

        def step(layer: nn.VectorQuantizer = layer) -> None:
            z = fmap.clone().requires_grad_()
            loss, quantized, *_ = layer(z)
            (loss + quantized.sum()).backward()

        yield f"layer {name}, {learning}", step
    yield f"encode {name}", lambda: layer.encode(fmap)


def sums(name: str, n: int, k: int, d: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the segment sum."""
    rows, indices = torch.randn(n, d), torch.randint(k, (n,))
    yield f"segment sum {name}", lambda: vqvae_fast.segment_sum(rows, indices, k)


def times(only: str = "") -> dict[str, float]:
    """Return the median seconds of a call, for the cases whose names contain ``only``."""
    taken = {}
    for cases, shapes in ((searches, SEARCHES), (layers, LAYERS), (sums, SUMS)):
        for shape in shapes:
            torch.manual_seed(0)
            try:
                calls = list(cases("x".join(map(str, shape)), *shape))
            except AttributeError:  # an earlier revision does not have it
                continue
            for name, call in calls:
                if only in name:
                    taken[name] = _median(call)
    return taken


def _median(call: Callable[[], object]) -> float:
    call()
    seconds: list[float] = []
    start = time.perf_counter()
    while len(seconds) < 3 or time.perf_counter() - start < _TURN_SECONDS:
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


if __name__ == "__main__":
    print(json.dumps({"package": vqvae_fast.__file__, "times": times(*sys.argv[1:2])}))
