"""The machine's own limit: float32 multiply-adds a second, measured by a native micro-benchmark.

The share of the peak is only worth something when both figures are taken under the same
conditions, so a :class:`PeakMeter` is sampled before, between and after the rounds of a benchmark
and reports the median of its samples.
"""

import ctypes
import functools
import os
import shutil
import statistics
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).with_name("peak.cpp")
# In the order of the source's numbers; the names are those of VQVAE_FAST_CPU_ISA, where
# "avx512vnni" multiplies float32 as "avx512" does.
ISAS = ("portable", "avx2", "avx512")
_BURSTS = 11
_FLAGS = ("-O3", "-std=c++20", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread")


class PeakUnavailableError(RuntimeError):
    """The micro-benchmark cannot be built or run here; the message says why."""


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    raise PeakUnavailableError("no C++ compiler was found (CXX, c++, g++, clang++)")


@functools.cache
def build(compiler: str) -> ctypes.CDLL:
    """Compile the micro-benchmark into a temporary folder and load it (a second, once)."""
    with tempfile.TemporaryDirectory(prefix="vqvae_fast_peak_") as folder:
        library = Path(folder) / "peak.so"
        built = subprocess.run(
            [compiler, *_FLAGS, str(SOURCE), "-o", str(library)], capture_output=True, text=True
        )
        if built.returncode:
            raise PeakUnavailableError(f"peak.cpp does not compile: {built.stderr.strip()[:500]}")
        loaded = ctypes.CDLL(str(library))
    loaded.peak_supports.argtypes = [ctypes.c_int]
    loaded.peak_flops_per_step.argtypes = [ctypes.c_int]
    loaded.peak_flops_per_step.restype = ctypes.c_double
    loaded.peak_fma_flops.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64]
    loaded.peak_fma_flops.restype = ctypes.c_double
    loaded.peak_clock_hz.argtypes = [ctypes.c_int64]
    loaded.peak_clock_hz.restype = ctypes.c_double
    return loaded


@dataclass
class PeakMeter:
    """Samples the float32 multiply-add peak and the clock.

    Args:
        threads: as many as the contenders use.
        isa: "avx512", "avx2" or "portable"; None takes VQVAE_FAST_CPU_ISA, or else the best that
            the machine runs, which is how the search chooses.
        seconds: length of one burst, roughly. A sample is the median of several: a burst is as
            short as a call, so that a neighbour's time slice falls out of both alike.

    Raises:
        PeakUnavailableError: no compiler, or an instruction set that the machine lacks.
    """

    threads: int
    isa: str | None = None
    seconds: float = 0.003
    flops: list[float] = field(default_factory=list)
    clock_hz: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._library = build(_compiler())
        wanted = self.isa or os.environ.get("VQVAE_FAST_CPU_ISA", "").removesuffix("vnni")
        runs = [name for i, name in enumerate(ISAS) if self._library.peak_supports(i)]
        if wanted and wanted not in runs:
            raise PeakUnavailableError(
                f"instruction set must be one of {', '.join(runs)} here, got {wanted}"
            )
        self.isa = wanted or runs[-1]
        self._number = ISAS.index(self.isa)
        steps = 100_000
        rates = (
            self._library.peak_fma_flops(self._number, self.threads, steps) for _ in range(_BURSTS)
        )
        step = self._library.peak_flops_per_step(self._number) * self.threads
        self._steps = int(max(rates) * self.seconds / step)

    def sample(self) -> float:
        """Take one sample of the peak, in FLOP/s, and one of the clock."""
        flops: float = statistics.median(
            self._library.peak_fma_flops(self._number, self.threads, self._steps)
            for _ in range(_BURSTS)
        )
        self.flops.append(flops)
        # 64 dependent additions a step: about a millisecond at 3 GHz.
        self.clock_hz.append(self._library.peak_clock_hz(50_000))
        return flops

    def median(self, since: int = 0) -> float:
        """The median of the samples from number ``since`` on, in FLOP/s; takes one if needed."""
        if len(self.flops) <= since:
            self.sample()
        return statistics.median(self.flops[since:])

    def summary(self) -> dict[str, object]:
        """What the JSON keeps: the median, the range, and whether the figure is plausible."""
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
    """A meter, or None and the reason."""
    try:
        return PeakMeter(threads), ""
    except PeakUnavailableError as error:
        return None, str(error)
