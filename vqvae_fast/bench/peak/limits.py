"""Measures all limits of the machine for a results file: multiply-adds and bandwidths."""

import os
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

from vqvae_fast.bench.peak import kernels, native
from vqvae_fast.bench.peak.native import Loop, Memory, PeakUnavailableError, Rate

# This maps the name of a figure in the record to the number format of its multiply-adds.
MULTIPLY_ADDS = {
    "float32_gflops": "float32",
    "int8_gops": "int8",
    "int16_gops": "int16",
    "bfloat16_gflops": "bfloat16",
    "amx_int8_gops": "amx_int8",
    "amx_bfloat16_gflops": "amx_bfloat16",
}
_BURST_SECONDS = 0.003
_LEAST_ROUNDS = 5
_MIB = 1 << 20
_LEAST_MEMORY = 256 * _MIB
# This size exceeds nearly every first-level cache and fits in nearly every second-level one.
_USUAL_CACHED = 128 * 1024
_PROCESSORS = Path("/sys/devices/system/cpu")


def measure_limits(threads: int, seconds: float = 1.5) -> dict[str, Any]:
    """Measure the machine's limits, whichever instruction set the search is set to use.

    Bandwidths count bytes read plus bytes written, as STREAM does. Copies use ordinary stores. The
    cache lines that the processor fetches before it writes to them are not counted, so the bus may
    carry up to half as much again.

    Args:
        threads: all run at once, and a figure is the sum over all.
        seconds: the approximate time of all bursts. Compiling and filling the memory take one or
            two seconds more, once.

    Returns:
        A record for JSON. Each figure is the median over bursts of a few milliseconds that take
        turns, or None: ``float32_gflops``, ``int8_gops`` and ``int16_gops`` (sums of 32 bits),
        ``bfloat16_gflops`` (sums in float32), ``amx_int8_gops`` and ``amx_bfloat16_gflops`` (the
        same on Intel's matrix unit), in 1e9 operations a second where a multiply-add is two;
        ``read_gb_per_s`` and ``copy_gb_per_s`` of memory four times the caches and no less than
        256 MiB, ``cache_read_gb_per_s`` of a quarter of the second-level cache for each thread, in
        1e9 bytes a second; ``clock_ghz``. The record also has ``threads``, ``bursts`` (of each
        figure), ``ranges`` (the smallest and the largest burst), ``isas`` and ``unavailable``: the
        reasons for figures that are None.

    Raises:
        ValueError: threads is less than 1.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    makers = {
        **{
            figure: partial(_multiply_adds, kind, threads) for figure, kind in MULTIPLY_ADDS.items()
        },
        "read_gb_per_s": partial(_uncached, "read", threads),
        "copy_gb_per_s": partial(_uncached, "copy", threads),
        "cache_read_gb_per_s": partial(_cached, "read", threads),
    }
    rates: dict[str, Rate] = {}
    isas: dict[str, str] = {}
    unavailable: dict[str, str] = {}
    for figure, make in makers.items():
        try:
            isas[figure], rates[figure] = make()
        except PeakUnavailableError as error:
            unavailable[figure] = str(error)
    bursts, clocks = _take_turns(rates, seconds)
    return {
        "threads": threads,
        "clock_ghz": round(statistics.median(clocks) / 1e9, 3) if clocks else None,
        **dict.fromkeys(makers),
        **{figure: _giga(statistics.median(taken)) for figure, taken in bursts.items()},
        "bursts": len(clocks),
        "ranges": {figure: [_giga(min(t)), _giga(max(t))] for figure, t in bursts.items()},
        "isas": isas,
        "unavailable": unavailable,
    }


def _giga(rate: float) -> float:
    return round(rate / 1e9, 1)


def _take_turns(
    rates: dict[str, Rate], seconds: float
) -> tuple[dict[str, list[float]], list[float]]:
    """Returns bursts of each rate and samples of the clock, one of each in every round."""
    bursts: dict[str, list[float]] = {figure: [] for figure in rates}
    clocks: list[float] = []
    start = time.perf_counter()
    while rates and (len(clocks) < _LEAST_ROUNDS or time.perf_counter() - start < seconds):
        for figure, rate in rates.items():
            bursts[figure].append(rate.burst())
        clocks.append(native.clock_hz())
    return bursts, clocks


def _multiply_adds(number_format: str, threads: int) -> tuple[str, Rate]:
    """Returns the instruction set and the rate."""
    kernel, loop = kernels.best(number_format)
    return kernel.isa, Rate(loop, threads, _BURST_SECONDS)


def _bandwidth(name: str, threads: int, bytes_each: int) -> tuple[str, Rate]:
    """Returns the instruction set and the rate, on a piece of memory for each thread."""
    kernel, _ = kernels.best("float32")
    library = native.build("bandwidth.cpp", *kernels.REGISTERS[kernel.vector_bytes])
    memory = Memory(threads, bytes_each, library.fill)
    return kernel.isa, Rate(Loop(library[name], memory.bytes_each), threads, _BURST_SECONDS, memory)


def _uncached(name: str, threads: int) -> tuple[str, Rate]:
    caches = _cache_sizes()
    total = max(_LEAST_MEMORY, 4 * sum(caches[max(caches)].values() if caches else ()))
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if total > installed // 4:
        raise PeakUnavailableError(
            f"needs {total // _MIB} MiB, more than a quarter of the {installed // _MIB} MiB here"
        )
    return _bandwidth(name, threads, total // threads)


def _cached(name: str, threads: int) -> tuple[str, Rate]:
    second = _cache_sizes().get(2)
    return _bandwidth(name, threads, min(second.values()) // 4 if second else _USUAL_CACHED)


def _cache_sizes() -> dict[int, dict[str, int]]:
    """Returns the bytes of the data caches by level and by the processors that share one."""
    sizes: dict[int, dict[str, int]] = {}
    for cache in _PROCESSORS.glob("cpu[0-9]*/cache/index[0-9]*"):
        try:
            level, kind, shared, size = (
                (cache / name).read_text().strip()
                for name in ("level", "type", "shared_cpu_list", "size")
            )
        except FileNotFoundError:  # a virtual machine may not report its caches
            continue
        if kind != "Instruction":
            sizes.setdefault(int(level), {})[shared] = int(size.removesuffix("K")) * 1024
    return sizes
