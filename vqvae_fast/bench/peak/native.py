"""Compiles the micro-benchmarks with the machine's own compiler, and times them on threads."""

import contextlib
import ctypes
import functools
import mmap
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

_FOLDER = Path(__file__).parent
_FLAGS = ("-O3", "-std=c++17", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread")


class PeakUnavailableError(RuntimeError):
    """A micro-benchmark cannot be built or run here; the message says why."""


def compiler() -> str:
    """Return the path of a C++ compiler."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    raise PeakUnavailableError("no C++ compiler was found (CXX, c++, g++, clang++)")


def build(source: str, *defines: str) -> ctypes.CDLL:
    """Compile a source of this folder and load it (well under a second, once).

    Args:
        source: the name of the file.
        defines: macros, as NAME=VALUE.

    Raises:
        PeakUnavailableError: there is no compiler, or it rejects the source.
    """
    return _build(compiler(), source, defines)


@functools.cache
def _build(compiler: str, source: str, defines: tuple[str, ...]) -> ctypes.CDLL:
    macros = [f"-D{define}" for define in defines]
    with tempfile.TemporaryDirectory(prefix="vqvae_fast_peak_") as folder:
        library = Path(folder) / "peak.so"
        built = subprocess.run(
            [compiler, *_FLAGS, *macros, str(_FOLDER / source), "-o", str(library)],
            capture_output=True,
            text=True,
        )
        if built.returncode:
            raise PeakUnavailableError(f"{source} does not compile: {built.stderr.strip()[:500]}")
        return ctypes.CDLL(str(library))


class Loop(NamedTuple):
    """A compiled loop, and the operations or bytes of one step of one thread."""

    function: Any
    per_step: float


class Memory:
    """A piece of memory for each thread, in pages that the thread itself has touched first.

    Args:
        threads: the number of pieces.
        bytes_each: the size of a piece, rounded up to whole pages.
        fill: the compiled loop that writes to the whole piece.

    Raises:
        PeakUnavailableError: the machine does not have this much memory.
    """

    def __init__(self, threads: int, bytes_each: int, fill: Any) -> None:
        self.bytes_each = -(-bytes_each // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            self._pages = mmap.mmap(-1, threads * self.bytes_each)
        except OSError as error:
            raise PeakUnavailableError(
                f"no {threads * self.bytes_each >> 20} MiB of memory: {error}"
            ) from error
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # this kernel has no huge pages
                self._pages.madvise(mmap.MADV_HUGEPAGE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._pages))
        seconds(Loop(fill, 0), 1, threads, self)


def seconds(loop: Loop, steps: int, threads: int, memory: Memory | None = None) -> float:
    """Return the seconds that ``threads`` threads take to run ``steps`` steps each."""
    timer = build("threads.cpp").loop_seconds
    timer.argtypes = (
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_int64,
    )
    timer.restype = ctypes.c_double
    address, size = (memory.address, memory.bytes_each) if memory else (None, 0)
    elapsed: float = timer(
        ctypes.cast(loop.function, ctypes.c_void_p), steps, threads, address, size
    )
    return elapsed


def clock_hz() -> float:
    """Take one sample of the clock, from dependent additions."""
    timer = build("threads.cpp").clock_hz
    timer.argtypes = (ctypes.c_int64,)
    timer.restype = ctypes.c_double
    hertz: float = timer(50_000)  # a step has 64 additions: about a millisecond at 3 GHz
    return hertz


class Rate:
    """The rate of a loop on some threads, measured in bursts as short as a call.

    A neighbour's time slice does not affect the median of such bursts, as it does not affect that
    of calls.

    Args:
        loop: the loop to run.
        threads: the number of threads.
        seconds: the approximate length of a burst, which has at least one step.
        memory: the memory that the loop works on, if any.
    """

    def __init__(
        self, loop: Loop, threads: int, seconds: float, memory: Memory | None = None
    ) -> None:
        self._loop, self._threads, self._memory = loop, threads, memory
        self._steps = 1
        while (quickest := min(self._seconds() for _ in range(3))) < seconds / 2:
            self._steps *= 2
        self._steps = max(1, int(self._steps * seconds / quickest))

    def _seconds(self) -> float:
        return seconds(self._loop, self._steps, self._threads, self._memory)

    def burst(self) -> float:
        """Return the operations or bytes per second of all threads together, over one burst."""
        return self._loop.per_step * self._steps * self._threads / self._seconds()
