"""CPU time of calls with few vectors: contenders take turns, and tables show them beside the first.

The wall clock of a shared machine also counts what others do; the CPU time of one thread does not.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from vqvae_fast.bench.interleave import interleaved, ratio

ABOUT_THE_TABLES = (
    "Microseconds of CPU time of one thread: the median of {rounds} interleaved rounds, and in "
    "parentheses how many times the time of the first contender that is (the median of the rounds' "
    "ratios).\n\n"
)


class WrongCodeError(AssertionError):
    """A code of ours is not the nearest, so nothing is timed."""


def cpu_seconds(sweep: Callable[[], Any], searches: int, min_seconds: float) -> float:
    """Return the CPU time of one search, from as many sweeps as ``min_seconds`` takes."""
    sweep()
    sweeps, begin = 0, time.process_time()
    while True:
        sweep()
        sweeps += 1
        passed = time.process_time() - begin
        if passed >= min_seconds:
            return passed / (sweeps * searches)


def timed(
    sweeps: Mapping[str, Callable[[], Any]], searches: int, rounds: int, min_seconds: float
) -> dict[str, dict[str, Any]]:
    """Return the JSON record of each contender; the first is the one with which all compare.

    Args:
        sweeps: name -> a call that makes ``searches`` searches.
        searches: how many.
        rounds: turns of each contender.
        min_seconds: how long a turn is, at least.
    """
    timings = interleaved(
        sweeps,
        rounds,
        take_turn=lambda sweep: cpu_seconds(sweep, searches, min_seconds),
    )
    first = next(iter(timings.values()))
    return {
        name: {
            "seconds": timing._asdict(),
            "times_slower_than_ours": ratio(first, timing)._asdict(),
        }
        for name, timing in timings.items()
    }


def cell(line: Mapping[str, Any]) -> str:
    """Return what a table shows of a contender: its time, and how many times the first's it is."""
    microseconds = 1e6 * line["seconds"]["median"]
    return f"{microseconds:.1f} ({line['times_slower_than_ours']['median']:.2f}x)"
