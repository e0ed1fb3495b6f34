"""The goals, and the distance of the measured figures from them."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from vqvae_fast.bench.data import Shape
from vqvae_fast.bench.peers import OURS

# The goals are for these devices, whose matrix units and clocks are the same; on others the figures
# are reported but not judged.
JUDGED = ("H100", "H200")
# These are milliseconds of the whole search for N = 65536, in a graph if it is short enough. The
# Triton kernels should reach them for K = 8192; a kernel written for sm_90 should reach 0.045, 0.11
# and 0.42. The figures for more codes are estimates at 650 TFLOP/s.
_MILLISECONDS = {
    (8192, 8): 0.07,
    (8192, 64): 0.125,
    (8192, 256): 0.46,
    (65536, 8): 0.35,
    (65536, 64): 0.85,
    (65536, 256): 3.4,
    (1 << 20, 8): 5.0,
    (1 << 20, 64): 13.5,
    (1 << 20, 256): 54.0,
}
_ROWS = 65536
_TORCH, _FLASH = "torch addmm+argmin", "flash-kmeans"
_TIMES_TORCH = 4.0
_TIMES_FLASH = {256: 1.2, 64: 1.7}
_TIMES_LAYER, _LAYER_CODES = 10.0, 8192


class Goal(NamedTuple):
    """One line of the table.

    Attributes:
        goal: the name of the goal.
        target: the least (or, for times in ms, the greatest) figure that meets it.
        unit: "ms" or "times".
        measured: the figure, or None.
        met: whether the figure meets it; None if it was not measured or the goal is for other
            devices.
        gap: how much is missing, or why there is no figure, in words.
    """

    goal: str
    target: float
    unit: str
    measured: float | None
    met: bool | None
    gap: str


def goals(entries: Iterable[dict[str, Any]], device_name: str) -> list[Goal]:
    """Return every goal for which the entries of a record have, or should have, a figure."""
    found = {_key(entry): entry for entry in entries if entry["data"] == "Gaussian"}
    lines = [*_times(found), *_against_torch(found), *_against_flash(found), *_layers(found)]
    return [_judged(line, device_name) for line in lines]


def whole_call(shape: Shape, dtype: str, seconds: float, device_name: str) -> Goal | None:
    """Judge the goal of a search of Gaussian data; return None for a shape without a goal."""
    target = _MILLISECONDS.get((shape.k, shape.d))
    if shape.n != _ROWS or target is None:
        return None
    text = _text_of_search(shape.k, shape.d, dtype)
    return _judged(Goal(text, target, "ms", seconds * 1e3, None, ""), device_name)


def _key(entry: dict[str, Any]) -> tuple[Any, ...]:
    return (entry["kind"], entry["dtype"], *entry["shape"].values())


def _times(found: dict[tuple[Any, ...], Any]) -> Iterator[Goal]:
    for dtype in ("float32", "bfloat16"):
        for (codes, dim), target in _MILLISECONDS.items():
            entry = found.get(("search", dtype, _ROWS, codes, dim))
            line, why = _line(entry, OURS.name)
            seconds = (line["seconds_in_graph"] or line["seconds"]["median"]) if line else None
            measured = None if seconds is None else seconds * 1e3
            yield Goal(_text_of_search(codes, dim, dtype), target, "ms", measured, None, why)


def _text_of_search(codes: int, dim: int, dtype: str) -> str:
    return f"search of N={_ROWS}, K={codes}, D={dim}, {dtype}"


def _against_torch(found: dict[tuple[Any, ...], Any]) -> Iterator[Goal]:
    for codes, dim in _MILLISECONDS:
        entry = found.get(("search", "float32", _ROWS, codes, dim))
        text = f"exact search over {_TORCH} (float32), K={codes}, D={dim}"
        yield _ratio(entry, _TORCH, text, _TIMES_TORCH)


def _against_flash(found: dict[tuple[Any, ...], Any]) -> Iterator[Goal]:
    for codes, dim in _MILLISECONDS:
        if dim in _TIMES_FLASH:
            entry = found.get(("search", "bfloat16", _ROWS, codes, dim))
            text = f"search over {_FLASH} (bfloat16), K={codes}, D={dim}"
            yield _ratio(entry, _FLASH, text, _TIMES_FLASH[dim])


def _layers(found: dict[tuple[Any, ...], Any]) -> Iterator[Goal]:
    layers = [e for e in found.values() if e["kind"] == "layer"]
    for entry in layers:
        n, k, d = entry["shape"].values()
        if k < _LAYER_CODES:
            continue
        for name in (*entry["contenders"], *entry["failed"], *entry["skipped"]):
            if not name.startswith("ours"):
                text = f"layer over {name}, N={n}, K={k}, D={d}"
                yield _ratio(entry, name, text, _TIMES_LAYER)
    if not layers:
        why = "the layer was not run"
        yield Goal("layer over vector-quantize-pytorch", _TIMES_LAYER, "times", None, None, why)


def _ratio(entry: dict[str, Any] | None, peer: str, text: str, target: float) -> Goal:
    line, why = _line(entry, peer)
    times = line["times_slower_than_ours"] if line else None
    if line and times is None:
        why = "ours was not measured"
    return Goal(text, target, "times", times["median"] if times else None, None, why)


def _line(entry: dict[str, Any] | None, name: str) -> tuple[dict[str, Any] | None, str]:
    """Returns the contender's line, or None and the reason why there is none."""
    if entry is None:
        return None, "the shape was not run"
    if name in entry["contenders"]:
        return entry["contenders"][name], ""
    why = entry["failed"].get(name) or entry["skipped"].get(name) or "not run"
    return None, f"{name}: {why}"


def _judged(goal: Goal, device_name: str) -> Goal:
    if goal.measured is None:
        return goal._replace(gap=f"not measured ({goal.gap})")
    if not any(name in device_name for name in JUDGED):
        return goal._replace(gap=f"not judged: the goal is for an {' or '.join(JUDGED)}")
    share = goal.target / goal.measured if goal.unit == "ms" else goal.measured / goal.target
    met = share >= 1.0
    gap = "" if met else f"{1.0 / share:.2f} times short of it"
    return goal._replace(met=met, gap=gap)
