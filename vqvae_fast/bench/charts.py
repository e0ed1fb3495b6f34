"""Draws charts of the search's records.

It uses matplotlib's Figure without pyplot, so there is no window and no global state. Colours are
Okabe and Ito's, which colour-blind readers tell apart, with two more, and every series has a marker
of its own.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from vqvae_fast.bench.data import Shape
from vqvae_fast.bench.peers import SEARCH_PEERS

_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"),
    *("#56B4E9", "#000000", "#8A6D00", "#7F7F7F", "#882255"),
)
_MARKERS = "os^Dv<>PXd"
WIDTH = 8.0  # inches; at 120 dots each a little wider than a README shows
OURS = "ours"
_SEARCHES = [peer.name for peer in SEARCH_PEERS]


class Style(NamedTuple):
    """The colour and marker of a contender, the same in all charts of a report."""

    color: str
    marker: str


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Choose styles: blue and round for ours, fixed ones for the search's peers."""
    ordered = sorted(dict.fromkeys(names), key=lambda name: not name.startswith(OURS))
    places = {name: _SEARCHES.index(name) for name in ordered if name in _SEARCHES}
    free = (place for place in itertools.count() if place not in places.values())
    places |= dict(zip((name for name in ordered if name not in places), free, strict=False))
    return {
        name: Style(_COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)])
        for name, place in places.items()
    }


def speed_up(path: Path, rows: Sequence[tuple[str, Mapping[str, Any]]], title: str) -> None:
    """Draw how many times faster ours is: a line for each shape, a dot for each peer.

    Args:
        path: the PNG to write.
        rows: (label, peer -> ratio as {"median", "q25", "q75"}).
        title: the title of the chart.
    """
    figure = Figure(figsize=(WIDTH, 1.6 + 0.42 * len(rows)), dpi=120, layout="constrained")
    axes = figure.subplots()
    looks = styles([OURS, *(name for _, peers in rows for name in peers)])
    drawn: set[str] = set()
    for place, (_, peers) in enumerate(rows):
        for name, ratio in peers.items():
            color, marker = looks[name]
            spread = [[ratio["median"] - ratio["q25"]], [ratio["q75"] - ratio["median"]]]
            # The dots of a line are shifted apart, because peers are often equally fast.
            shift = 0.6 * (list(looks).index(name) / len(looks) - 0.5)
            axes.errorbar(
                ratio["median"],
                place + shift,
                xerr=spread,
                fmt=marker,
                color=color,
                markersize=6,
                elinewidth=1,
                label=None if name in drawn else name,
            )
            drawn.add(name)
    axes.axvline(1, color="#000000", linewidth=1)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.set_xlabel("our speed over the peer's (1: the same)")
    plain(axes.xaxis)
    axes.set_title(title)
    finish(figure, axes, path, columns=2)


class Point(NamedTuple):
    """A measured shape in a roofline: operations per byte, and operations per second."""

    intensity: float
    rate: float


def roofline(
    path: Path,
    points: Mapping[str, Sequence[Point]],
    roofs: Mapping[str, float],
    bandwidth: float | None,
) -> None:
    """Draw the rates that were reached beside the machine's limits.

    Args:
        path: the PNG to write.
        points: the measured shapes of each contender.
        roofs: name ("float32", "int8") -> operations per second.
        bandwidth: bytes of memory per second.
    """
    figure = Figure(figsize=(WIDTH, 4.8), dpi=120, layout="constrained")
    axes = figure.subplots()
    reached = [point.intensity for of in points.values() for point in of]
    left, right = min(reached) / 2, max(reached) * 2
    lower = 0.0
    for name, roof in sorted(roofs.items(), key=lambda item: item[1]):
        knee = max(left, roof / bandwidth) if bandwidth else left
        axes.plot([knee, right], [roof / 1e9] * 2, color="#000000", linewidth=1.2)
        label = f"{name}: {roof / 1e9:.0f} G/s"
        above = -3 if roof > 1.5 * lower else 3  # two names of close roofs would overlap
        axes.annotate(label, (right, roof / 1e9), (4, above), textcoords="offset points")
        lower = roof
    if bandwidth and roofs:
        knee = max(roofs.values()) / bandwidth
        if knee > left:
            axes.plot(
                [left, knee], [left * bandwidth / 1e9, max(roofs.values()) / 1e9], color="#000000"
            )
            axes.annotate(f"memory: {bandwidth / 1e9:.0f} GB/s", (left, left * bandwidth / 1e9))
    looks = styles(points)
    for name, of in points.items():
        color, marker = looks[name]
        x, y = zip(*((point.intensity, point.rate / 1e9) for point in of), strict=True)
        axes.scatter(x, y, color=color, marker=marker, label=name, zorder=3)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right * 4)  # room for the names of the roofs
    axes.set_xlabel("operations for each byte of vectors, codes and results")
    axes.set_ylabel("effective 1e9 operations a second (2NKD / time)")
    axes.set_title("The search beside the machine's limits")
    plain(axes.xaxis)
    plain(axes.yaxis)
    finish(figure, axes, path, columns=3)


def search_speed_up(path: Path, entries: Iterable[Mapping[str, Any]], title: str) -> bool:
    """Draw how many times faster ours is from entries of a record of the search.

    Returns:
        Whether there was a shape with a peer; otherwise nothing is written.
    """
    rows = [
        (
            Shape(**entry["shape"]).title,
            {
                name: line["times_slower_than_ours"]
                for name, line in entry["contenders"].items()
                if name != OURS
            },
        )
        for entry in entries
        if len(entry["contenders"]) > 1
    ]
    if rows:
        speed_up(path, rows, title)
    return bool(rows)


def search_roofline(path: Path, record: Mapping[str, Any], shown: Iterable[str]) -> bool:
    """Draw the rates of the contenders that are to be shown beside the limits in the record.

    Returns:
        Whether a limit was measured; otherwise nothing is written.
    """
    limits = record.get("limits") or {}
    float32 = limits.get("float32_gflops") or record["peak"].get("gflops")
    roofs = {} if float32 is None else {"float32": float32 * 1e9}
    for key, name in (
        ("int8_gops", "int8"),
        ("bfloat16_gflops", "bfloat16"),
        ("amx_int8_gops", "AMX int8"),
        ("amx_bfloat16_gflops", "AMX bfloat16"),
    ):
        if limits.get(key):
            roofs[name] = limits[key] * 1e9
    if not roofs:
        return False
    read = limits.get("read_gb_per_s")
    points = _points(record["results"])
    roofline(
        path,
        {name: points[name] for name in shown if name in points},
        roofs,
        read * 1e9 if read else None,
    )
    return True


def _points(entries: Iterable[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """Returns the points of a roofline from entries of a record of the search."""
    points: dict[str, list[Point]] = {}
    for entry in entries:
        shape = Shape(**entry["shape"])
        size = getattr(torch, entry["dtype"]).itemsize
        # A search reads vectors and codes, and writes an index of 8 bytes and a distance of 4.
        moved = (shape.n + shape.k) * shape.d * size + 12 * shape.n
        for name, line in entry["contenders"].items():
            rate = shape.flops / line["seconds"]["median"]
            points.setdefault(name, []).append(Point(shape.flops / moved, rate))
    return points


def plain(axis: Any) -> None:
    """Label an axis with plain numbers, not with powers."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def finish(figure: Figure, axes: Axes, path: Path, columns: int) -> None:
    """Add a grid and a legend below, and write the PNG."""
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    figure.savefig(path, metadata={"Software": None})
