"""Estimates made without a device: times that the kernels cannot beat, and expected times.

They are microseconds for N = 65536, K = 8192 in float32 on an H100, plus or minus 30 per cent. They
are derived from the instructions that the compiler emitted (`benchmarks.gpu_check`); the likely
figures also count waiting. The kernels that follow the scan have been rewritten since.
"""

from typing import NamedTuple


class Estimate(NamedTuple):
    """The microseconds of one kernel; ``floor`` is None if there is no estimate."""

    floor: float | None
    likely: float


# This maps D to kernels to estimates.
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
    """Return the estimate for a kernel, by the name that a profiler shows."""
    for name, found in ESTIMATES.get(dim, {}).items():
        if kernel.startswith(name):
            return found
    return Estimate(None, float("nan"))
