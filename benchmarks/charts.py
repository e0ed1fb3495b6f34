"""Draws charts of the records, a function for each; :mod:`benchmarks.report` calls them.

It uses matplotlib's Figure without pyplot, so there is no window and no global state. Colours are
Okabe and Ito's, which colour-blind readers tell apart, with two more, and every series has a marker
of its own.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.sweep import series, slope
from vqvae_fast.bench.data import Shape
from vqvae_fast.bench.peers import SEARCH_PEERS

_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"),
    *("#56B4E9", "#000000", "#8A6D00", "#7F7F7F", "#882255"),
)
_MARKERS = "os^Dv<>PXd"
_WIDTH = 8.0  # inches; at 120 dots each a little wider than a README shows
_OURS = "ours"
_SEARCHES = [peer.name for peer in SEARCH_PEERS]


class Style(NamedTuple):
    """The colour and marker of a contender, the same in all charts of a report."""

    color: str
    marker: str


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Choose styles: blue and round for ours, fixed ones for the search's peers."""
    ordered = sorted(dict.fromkeys(names), key=lambda name: not name.startswith(_OURS))
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
    figure = Figure(figsize=(_WIDTH, 1.6 + 0.42 * len(rows)), dpi=120, layout="constrained")
    axes = figure.subplots()
    looks = styles([_OURS, *(name for _, peers in rows for name in peers)])
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
    _plain(axes.xaxis)
    axes.set_title(title)
    _finish(figure, axes, path, columns=2)


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
    figure = Figure(figsize=(_WIDTH, 4.8), dpi=120, layout="constrained")
    axes = figure.subplots()
    reached = [point.intensity for of in points.values() for point in of]
    left, right = min(reached) / 2, max(reached) * 2
    for name, roof in roofs.items():
        knee = max(left, roof / bandwidth) if bandwidth else left
        axes.plot([knee, right], [roof / 1e9] * 2, color="#000000", linewidth=1.2)
        label = f"{name}: {roof / 1e9:.0f} G/s"
        axes.annotate(label, (right, roof / 1e9), (4, -3), textcoords="offset points")
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
    _plain(axes.xaxis)
    _plain(axes.yaxis)
    _finish(figure, axes, path, columns=3)


def scaling(path: Path, sweep: Mapping[str, Any], kind: str, title: str) -> None:
    """Draw time, and memory if it was measured, over a size, with slopes in the legends.

    Args:
        path: the PNG to write.
        sweep: one of the sweeps in :mod:`benchmarks.sweep`'s record.
        kind: "search" or "layer".
        title: the title of the chart.
    """
    panels = [
        (label, scale, lines)
        for label, scale, figure_name in (
            ("milliseconds a call", 1e3, "seconds"),
            ("peak memory, MiB", 1 / (1 << 20), "peak_memory"),
        )
        if (lines := series(sweep, kind, figure_name))
    ]
    figure = Figure(figsize=(_WIDTH, 5.0), dpi=120, layout="constrained")
    figure.suptitle(title)
    looks = styles(name for _, _, lines in panels for name in lines)
    for axes, (label, scale, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for name, points in lines.items():
            sizes, values = zip(*points, strict=True)
            color, marker = looks[name]
            exponent = slope(sizes, values)
            grows = "" if exponent is None else f" (grows as ^{exponent:.2f})"
            axes.plot(
                sizes, [v * scale for v in values], color=color, marker=marker, label=name + grows
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(
            {"k": "codes K", "d": "length of a code D", "n": "vectors N"}[sweep["axis"]]
        )
        axes.set_ylabel(label)
        axes.xaxis.set_major_formatter(FuncFormatter(_short_count))
        _plain(axes.yaxis)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    figure.savefig(path, metadata={"Software": None})


def training_curves(path: Path, runs: Mapping[str, Mapping[str, Any]], window: int = 15) -> None:
    """Draw the PSNR of the training crops over the steps: a line for each recipe and seed.

    Args:
        path: the PNG to write.
        runs: the runs in the record of :mod:`benchmarks.training` that have a "curve" of (step,
            mean squared error of pixels in [0, 1]).
        window: the number of points of a running mean.
    """
    figure = Figure(figsize=(_WIDTH, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    looks = styles([_OURS, *(run["recipe"] for run in runs.values())])
    drawn: set[str] = set()
    for run in runs.values():
        steps, errors = zip(*run["curve"], strict=True)
        smooth = [sum(part) / len(part) for part in _windows(errors, window)]
        recipe = run["recipe"]
        axes.plot(
            steps[window - 1 :],
            [-10 * math.log10(error) for error in smooth],
            color=looks[recipe].color,
            linestyle={"reference": "--", "gradient": "-."}.get(recipe, "-"),
            label=None if recipe in drawn else recipe,
        )
        drawn.add(recipe)
    axes.set_xlabel("training step")
    axes.set_ylabel("PSNR of the training crops, dB")
    seeds = ", ".join(sorted({str(run["seed"]) for run in runs.values()}))
    axes.set_title(f"Training on the photographs (seed {seeds}; running mean of {window} points)")
    _finish(figure, axes, path, columns=3)


def alive(path: Path, runs: Iterable[Mapping[str, Any]]) -> None:
    """Draw the reconstruction error and the codes in use over the number of codes, by recipe.

    Lines join the means of the seeds; bars reach from the least to the largest.

    Args:
        path: the PNG to write.
        runs: the runs in the record of :mod:`benchmarks.alive`.
    """
    runs = list(runs)
    recipes = sorted({run["recipe"] for run in runs}, key=lambda recipe: recipe != _OURS)
    looks = styles(recipes)
    figure = Figure(figsize=(_WIDTH, 4.2), dpi=120, layout="constrained")
    error, used = figure.subplots(1, 2)
    for recipe in recipes:
        own = [run for run in runs if run["recipe"] == recipe]
        sizes, look = [run["codes"] for run in own], looks[recipe]
        shares = [100 * run["codes_used"] / run["codes"] for run in own]
        _means(error, sizes, [run["psnr"] for run in own], look, recipe)
        _means(used, sizes, shares, look, None)  # one legend serves both
    error.set_ylabel("PSNR of held-out crops, dB")
    used.set_ylabel("codes in use on held-out crops, %")
    used.set_ylim(0, 105)
    for axes in (error, used):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("codes K")
        axes.xaxis.set_major_formatter(FuncFormatter(_short_count))
    used.grid(alpha=0.3)
    figure.suptitle("Large codebooks: the photographs' VQ-VAE")
    _finish(figure, error, path, columns=2)


def _means(
    axes: Axes,
    sizes: Sequence[int],
    values: Sequence[float],
    look: tuple[str, str],
    label: str | None,
) -> None:
    of_size: dict[int, list[float]] = {}
    for size, value in sorted(zip(sizes, values, strict=True)):
        of_size.setdefault(size, []).append(value)
    means = [fmean(some) for some in of_size.values()]
    pairs = list(zip(means, of_size.values(), strict=True))
    reach = ([mean - min(some) for mean, some in pairs], [max(some) - mean for mean, some in pairs])
    color, marker = look
    axes.errorbar(list(of_size), means, reach, color=color, marker=marker, capsize=3, label=label)


def search_points(entries: Iterable[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """Return the points of a roofline from records of the search."""
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


def _windows(values: Sequence[float], width: int) -> Iterator[Sequence[float]]:
    return (values[i : i + width] for i in range(len(values) - width + 1))


def _short_count(value: float, _place: int) -> str:
    for size, unit in ((1 << 20, "M"), (1 << 10, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _plain(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _finish(figure: Figure, axes: Axes, path: Path, columns: int) -> None:
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    figure.savefig(path, metadata={"Software": None})
