"""Runs one contest: builds and checks all contenders, then takes times in turns."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import torch

from vqvae_fast.bench.interleave import interleaved, ratio

# Longer calls gain nothing in a graph.
_GRAPH_SECONDS = 0.002


class Clock(Protocol):
    """The methods of a device that a contest needs (:class:`benchmarks.gpu.device.Gpu`)."""

    def seconds(self, call: Callable[[], Any]) -> float:
        """Return the seconds of a turn of a call."""

    def seconds_in_graph(self, call: Callable[[], Any]) -> float:
        """Return the seconds of the call replayed from a graph."""

    def peak_bytes(self, call: Callable[[], Any]) -> int:
        """Return the most memory that a call allocates."""

    def release(self) -> None:
        """Free memory."""


class Contender(NamedTuple):
    """A contender.

    Attributes:
        name: id in tables and JSON.
        ours: a failure of ours ends the contest; a peer's is a line in the table.
        unavailable: None, or why it cannot run here.
        build: makes the call that is timed; building is not timed.
        check: maps the call's result to the share of it that is wrong; raises if one of ours is
            wrong.
        graph: whether the call may be captured in a CUDA graph.
    """

    name: str
    ours: bool
    unavailable: str | None
    build: Callable[[], Callable[[], Any]]
    check: Callable[[Any], float]
    graph: bool


class Outcome(NamedTuple):
    """The result of a contest: a line for each contender that ran, and why others did not."""

    lines: dict[str, dict[str, Any]]
    failed: dict[str, str]
    skipped: dict[str, str]


def compete(
    contenders: Iterable[Contender], rival_of: Callable[[str], str], clock: Clock, rounds: int
) -> Outcome:
    """Check all contenders, then time them; ratios are against the one that ``rival_of`` names.

    Raises:
        Exception: any that one of ours raised.
    """
    clock.release()
    outcome = Outcome({}, {}, {})
    contenders = list(contenders)
    calls: dict[str, Callable[[], Any]] = {}
    for contender in contenders:
        if contender.unavailable is not None:
            outcome.skipped[contender.name] = contender.unavailable
            continue
        try:
            call = contender.build()
            wrong = contender.check(call())
            memory = clock.peak_bytes(call)
        except Exception as error:
            if contender.ours:
                raise
            outcome.failed[contender.name] = _reason(error)
            clock.release()
            continue
        calls[contender.name] = call
        outcome.lines[contender.name] = {"violating": wrong, "peak_bytes": memory}
    if not calls:
        return outcome
    timings = interleaved(calls, rounds, take_turn=lambda call: _turn(clock, call))
    for name, timing in timings.items():
        if not all(map(math.isfinite, timing.rounds)):
            outcome.failed[name] = "out of memory"
            del outcome.lines[name]
            continue
        outcome.lines[name]["seconds"] = timing._asdict()
        outcome.lines[name]["seconds_in_graph"] = None
    for name, line in outcome.lines.items():
        rival = rival_of(name)
        own = timings[rival] if rival in outcome.lines else None
        line["times_slower_than_ours"] = ratio(own, timings[name])._asdict() if own else None
    for contender in contenders:
        if contender.graph and contender.name in outcome.lines:
            _replay(contender, outcome.lines[contender.name], calls[contender.name], clock)
    return outcome


def _replay(
    contender: Contender, line: dict[str, Any], call: Callable[[], Any], clock: Clock
) -> None:
    """Adds the time in a graph to a short call's line; comes last, because a capture may fail."""
    if line["seconds"]["median"] > _GRAPH_SECONDS:
        return
    try:
        line["seconds_in_graph"] = clock.seconds_in_graph(call)
    except Exception:
        if contender.ours:
            raise


def _turn(clock: Clock, call: Callable[[], Any]) -> float:
    """Returns the seconds of a turn; infinity if the device's memory does not suffice."""
    try:
        return clock.seconds(call)
    except torch.OutOfMemoryError:
        clock.release()
        return math.inf


def _reason(error: Exception) -> str:
    """Returns the error in one line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
