"""Interleaved timing: the contenders take turns on the same tensors, round after round.

A shared machine drifts: clocks, neighbours, caches. Contenders that run one after the other meet
different states of the machine; contenders that alternate meet the same. So a round gives every
contender one turn, the order rotates, and only medians over rounds are compared.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

# A turn begins with a rest, because OpenMP's threads spin after their work and would take the next
# contender's cores.
_LONG_CALL = 1.0  # seconds
_REST_SECONDS = 0.005


class Timing(NamedTuple):
    """Seconds for one call, over the rounds."""

    median: float
    q25: float
    q75: float
    rounds: list[float]


def summarise(seconds: list[float]) -> Timing:
    """Return the median and the quartiles of the rounds."""
    if len(seconds) == 1:
        return Timing(seconds[0], seconds[0], seconds[0], seconds)
    q25, median, q75 = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, q25, q75, seconds)


def turn(call: Callable[[], Any], min_seconds: float, max_calls: int) -> float:
    """Take one turn: a rest, an untimed call to warm up, then timed calls; return their median.

    A call of more than a second needs no warm-up.
    """
    time.sleep(_REST_SECONDS)
    begin = time.perf_counter()
    call()
    if (first := time.perf_counter() - begin) > _LONG_CALL:
        return first
    times: list[float] = []
    start = time.perf_counter()
    while not times or (time.perf_counter() - start < min_seconds and len(times) < max_calls):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    min_seconds: float = 0.1,
    max_calls: int = 200,
    between: Callable[[], Any] = lambda: None,
    take_turn: Callable[[Callable[[], Any]], float] | None = None,
    failed: Callable[[str, Exception], object] | None = None,
) -> dict[str, Timing]:
    """Time every call in every round.

    Args:
        calls: name -> call without arguments.
        rounds: how many turns each call gets.
        min_seconds: a turn repeats its call until this much time has passed.
        max_calls: a turn repeats its call at most this often.
        take_turn: takes one turn of a call and returns its seconds, in place of the default (a GPU
            has its own clock). ``min_seconds`` and ``max_calls`` are then not used.
        failed: told (name, exception) if a call raises one; the call then gets no more turns and no
            timing. Without it the exception ends the contest.
        between: called before, between and after the rounds (the machine's peak is sampled there).

    Returns:
        name -> timing, in the order of ``calls``, without those that failed.
    """
    if take_turn is None:

        def take_turn(call: Callable[[], Any]) -> float:
            return turn(call, min_seconds, max_calls)

    seconds: dict[str, list[float]] = {name: [] for name in calls}
    between()
    for number in range(rounds):
        for name in _rotated(list(calls), number):
            if name not in seconds:
                continue
            try:
                seconds[name].append(take_turn(calls[name]))
            except Exception as error:
                if failed is None:
                    raise
                failed(name, error)
                del seconds[name]
        between()
    return {name: summarise(times) for name, times in seconds.items()}


def ratio(ours: Timing, peer: Timing) -> Timing:
    """Return the peer's time over ours, round by round: how many times faster ours is."""
    return summarise([theirs / own for own, theirs in zip(ours.rounds, peer.rounds, strict=True)])


def _rotated(names: list[str], by: int) -> Iterator[str]:
    shift = by % len(names)
    yield from names[shift:]
    yield from names[:shift]
