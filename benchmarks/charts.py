"""Draws charts of the records, a function for each; :mod:`benchmarks.report` calls them.

Those of the search are in :mod:`vqvae_fast.bench.charts`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.sweep import series, slope
from vqvae_fast.bench.charts import OURS, WIDTH, Style, finish, plain, styles


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
    figure = Figure(figsize=(WIDTH, 5.0), dpi=120, layout="constrained")
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
        plain(axes.yaxis)
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
    figure = Figure(figsize=(WIDTH, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    looks = styles([OURS, *(run["recipe"] for run in runs.values())])
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
    finish(figure, axes, path, columns=3)


def alive(path: Path, runs: Iterable[Mapping[str, Any]]) -> None:
    """Draw the reconstruction error and the codes in use over the number of codes, by recipe.

    Lines join the means of the seeds; bars reach from the least to the largest.

    Args:
        path: the PNG to write.
        runs: the runs in the record of :mod:`benchmarks.alive`.
    """
    runs = list(runs)
    recipes = sorted({run["recipe"] for run in runs}, key=lambda recipe: recipe != OURS)
    looks = styles(recipes)
    figure = Figure(figsize=(WIDTH, 4.2), dpi=120, layout="constrained")
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
    finish(figure, error, path, columns=2)


def _means(
    axes: Axes,
    sizes: Sequence[int],
    values: Sequence[float],
    look: Style,
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


def _windows(values: Sequence[float], width: int) -> Iterator[Sequence[float]]:
    return (values[i : i + width] for i in range(len(values) - width + 1))


def _short_count(value: float, _place: int) -> str:
    for size, unit in ((1 << 20, "M"), (1 << 10, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
