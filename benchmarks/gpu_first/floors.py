"""Estimates without a device: times that the kernels cannot beat, and times that we expect.

Microseconds for N = 65536, K = 8192 in float32 on an H100, plus or minus 30 per cent, derived
from the instructions that the compiler emitted (`benchmarks.gpu_check`); the likely figures also
count waiting. They were made before the kernels behind the scan were rewritten.
"""

from typing import NamedTuple


class Estimate(NamedTuple):
    """Microseconds of one kernel. floor: None if there is no estimate."""

    floor: float | None
    likely: float


# D -> kernel -> estimate.
ESTIMATES = {
    8: {
        "prepare": Estimate(None, 7),
        "scan": Estimate(60, 80),
        "settle": Estimate(42, 55),
        "exact": Estimate(None, 10),
    },
    64: {
        "prepare": Estimate(None, 8),
        "scan": Estimate(75, 100),
        "settle": Estimate(55, 75),
        "exact": Estimate(None, 35),
    },
    256: {
        "prepare": Estimate(None, 11),
        "scan": Estimate(299, 470),
        "settle": Estimate(96, 130),
        "exact": Estimate(None, 300),
    },
}


def estimate(dim: int, kernel: str) -> Estimate:
    """The estimate for a kernel by the name that a profiler shows; none for one that has none."""
    for name, found in ESTIMATES.get(dim, {}).items():
        if kernel.startswith(name):
            return found
    return Estimate(None, float("nan"))
