"""Measures the machine's limits by native micro-benchmarks.

A share of the peak is meaningful only if both figures are taken under the same conditions. So a
:class:`PeakMeter` is sampled before, between and after the rounds of a benchmark and reports the
median of its samples. :func:`measure_limits` measures all limits at once.
"""

import statistics
from dataclasses import dataclass, field

from vqvae_fast import settings
from vqvae_fast.bench.peak import kernels, native
from vqvae_fast.bench.peak.limits import measure_limits
from vqvae_fast.bench.peak.native import PeakUnavailableError, Rate

__all__ = ["PeakMeter", "PeakUnavailableError", "measure_limits", "try_meter"]
_BURSTS = 11


@dataclass
class PeakMeter:
    """Samples the float32 multiply-add peak and the clock.

    Args:
        threads: the number of threads that the contenders use.
        isa: "avx512", "avx2" or "portable"; None takes VQVAE_FAST_CPU_ISA, or else the best that
            the machine runs, as the search does.
        seconds: the approximate length of one burst. A sample is the median of several.

    Raises:
        PeakUnavailableError: there is no compiler, or the machine lacks the instruction set.
    """

    threads: int
    isa: str | None = None
    seconds: float = 0.003
    flops: list[float] = field(default_factory=list)
    clock_hz: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        wanted = self.isa or kernels.float_set(settings.current.cpu_isa or "")
        kernel, loop = kernels.named("float32", wanted) if wanted else kernels.best("float32")
        self.isa = kernel.isa
        self._rate = Rate(loop, self.threads, self.seconds)

    def sample(self) -> float:
        """Take one sample of the peak, in FLOP/s, and one of the clock."""
        self.flops.append(statistics.median(self._rate.burst() for _ in range(_BURSTS)))
        self.clock_hz.append(native.clock_hz())
        return self.flops[-1]

    def median(self, since: int = 0) -> float:
        """Return the median of the samples from number ``since`` on, in FLOP/s."""
        if len(self.flops) <= since:
            self.sample()
        return statistics.median(self.flops[since:])

    def summary(self) -> dict[str, object]:
        """Return the JSON record: the median, the range, and whether the figure is plausible."""
        peak, clock = self.median(), statistics.median(self.clock_hz)
        return {
            "isa": self.isa,
            "threads": self.threads,
            "gflops": round(peak / 1e9, 1),
            "gflops_min": round(min(self.flops) / 1e9, 1),
            "gflops_max": round(max(self.flops) / 1e9, 1),
            "samples": len(self.flops),
            "clock_ghz": round(clock / 1e9, 3),
            "flop_per_clock_and_thread": round(peak / clock / self.threads, 1),
        }


def try_meter(threads: int) -> tuple[PeakMeter | None, str]:
    """Return a meter, or None and the reason."""
    try:
        return PeakMeter(threads), ""
    except PeakUnavailableError as error:
        return None, str(error)
