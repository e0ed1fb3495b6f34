"""The drawings of the documentation: ``python -m benchmarks.pictures`` writes them to docs/images.

``speed_up.png`` shows committed records of the benchmarks, ``filter.png`` a small search that is
computed here, and ``example.png`` the worked example of docs/exactness.md. They have a white
background of their own, so they can be read on a dark page.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

_ROOT = Path(__file__).parents[1]
_RECORDS = _ROOT / "benchmarks" / "results" / "amd-epyc-zen5-2c"
_IMAGES = _ROOT / "docs" / "images"
_PEERS = {
    "FAISS search": "FAISS",
    "torch.compile": "torch.compile(addmm + argmin)",
    "torch addmm+argmin": "torch addmm + argmin",
    "torch cdist+argmin": "torch cdist + argmin",
    "scikit-learn": "scikit-learn",
}
_MODULES = "vector-quantize-pytorch,\na module's training step"
_OFFSET: dict[str, Any] = {"textcoords": "offset points"}
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#9A9A9A"


def speed_ups(search: Mapping[str, Any], drop_in: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return how many times as long each peer takes, for each shape at which it was measured.

    Args:
        search: the record of :mod:`benchmarks.search`.
        drop_in: the record of :mod:`benchmarks.drop_in`.
    """
    lines = [entry["contenders"] for entry in search["results"]]
    of_peers = {
        title: [line[name]["times_slower_than_ours"]["median"] for line in lines if name in line]
        for name, title in _PEERS.items()
    }
    of_peers[_MODULES] = [entry["times_faster"]["median"] for entry in drop_in["results"]]
    return of_peers


def draw_speed_ups(path: Path, of_peers: Mapping[str, Sequence[float]], caption: str) -> None:
    """Draw a row for each peer: a dot for each shape, and a bar up to the geometric mean."""
    figure = Figure(figsize=(8, 3.6), dpi=140, layout="constrained", facecolor="white")
    axes = figure.subplots()
    for row, ratios in enumerate(of_peers.values()):
        mean = geometric_mean(ratios)
        axes.barh(row, mean - 1, left=1, height=0.62, color=_BLUE, alpha=0.3)
        axes.plot(ratios, [row] * len(ratios), "o", color=_BLUE, markersize=4, alpha=0.7)
        axes.text(
            *(max(ratios) * 1.15, row, f"{_two_digits(mean)}x"),
            va="center",
            color="black",
            fontweight="bold",
        )
    axes.axvline(1, color="black", linewidth=1.2)
    axes.set_yticks(range(len(of_peers)), list(of_peers))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(0.9, max(max(ratios) for ratios in of_peers.values()) * 2)
    axes.set_xlabel("times as fast as the peer (dot: one shape; bar and number: geometric mean)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(caption, fontsize=10)
    _save(figure, path)


class Filtered(NamedTuple):
    """A search of one vector through a filter in low precision.

    Attributes:
        scores: [K], ``z.e - |e|^2 / 2`` of the rounded vector and codes.
        error: the largest amount by which such a score can be wrong.
        bound: a code whose score is lower cannot be the nearest.
        distances: [K], exact squared distances.
    """

    scores: NDArray[np.float64]
    error: float
    bound: float
    distances: NDArray[np.float64]

    @property
    def kept(self) -> NDArray[np.bool_]:
        """The codes [K] that the bound does not rule out."""
        return self.scores >= self.bound


def filtered(z: NDArray[np.float64], codes: NDArray[np.float64], unit: float) -> Filtered:
    """Search as docs/exactness.md derives it, with elements rounded to multiples of ``unit``.

    Args:
        z: [D].
        codes: [K, D].
        unit: the unit of rounding; a coarser unit makes the bound wider.
    """
    near_z, near_codes = (unit * np.round(x / unit) for x in (z, codes))
    norms = np.linalg.norm(codes, axis=1)
    scores = near_codes @ near_z - norms**2 / 2
    distances = np.square(codes - z).sum(axis=1)
    distance = distances[scores.argmax()]  # the best score's code is measured first
    longest = min(norms.max(), np.linalg.norm(z) + np.sqrt(distance))
    rounded_by = np.linalg.norm(codes - near_codes, axis=1).max()
    error = np.linalg.norm(z - near_z) * longest + np.linalg.norm(near_z) * rounded_by
    return Filtered(scores, float(error), float((z @ z - distance) / 2 - error), distances)


def draw_filter(path: Path, search: Filtered) -> None:
    """Draw the scores of all codes with their error, and the distances of the remaining codes."""
    figure = Figure(figsize=(8, 3.6), dpi=140, layout="constrained", facecolor="white")
    all_codes, few_codes = figure.subplots(1, 2, width_ratios=(2.4, 1))
    _draw_scores(all_codes, search)
    _draw_distances(few_codes, search)
    _save(figure, path)


# The vector and the codes of the worked example in docs/exactness.md, which rounds to integers.
EXAMPLE_Z = np.array([2.7, 2.3])
EXAMPLE_CODES = np.array([[-0.6, 4.0], [-3.1, 3.8], [1.4, -3.7], [3.6, -2.1]])


def draw_example(path: Path, z: NDArray[np.float64], codes: NDArray[np.float64]) -> None:
    """Draw a vector and a few codes in the plane, and beside them their fast scores."""
    figure = Figure(figsize=(8, 3.6), dpi=140, layout="constrained", facecolor="white")
    plane, scores = figure.subplots(1, 2, width_ratios=(1, 1.25))
    search = filtered(z, codes, unit=1.0)
    _draw_plane(plane, z, codes, search)
    _draw_few_scores(scores, search)
    _save(figure, path)


def _draw_plane(
    axes: Axes, z: NDArray[np.float64], codes: NDArray[np.float64], search: Filtered
) -> None:
    colors = _colors(search)
    for place, color in zip((*codes, z), (*colors, "black"), strict=True):
        axes.plot(*zip(place, place.round(), strict=True), color=_GREY, marker=".", markersize=4)
        axes.plot(*place, "o" if color != "black" else "*", color=color, markersize=9)
    for code, place in enumerate(codes):
        axes.annotate(f"code {code}", place, (0, 9), ha="center", **_OFFSET)
    axes.annotate("z", z, (0, 9), ha="center", **_OFFSET)
    axes.set_aspect("equal")
    axes.margins(0.18)
    axes.grid(alpha=0.3)
    axes.set_xticks(range(-4, 6))
    axes.set_yticks(range(-4, 6))
    axes.tick_params(labelsize=8)
    axes.set_title("z and the codes; grey: rounded to integers", fontsize=10)


def _draw_few_scores(axes: Axes, search: Filtered) -> None:
    for code, color in enumerate(_colors(search)):
        axes.errorbar(*(code, search.scores[code], search.error), fmt="o", color=color, capsize=4)
    to_reach = search.bound + search.error
    axes.axhline(to_reach, color="black", linewidth=1.2)
    lowest, highest = axes.get_ylim()
    axes.set_ylim(lowest, highest)
    axes.axhspan(lowest, to_reach, color=_GREY, alpha=0.15, linewidth=0)
    best = search.scores.argmax()
    axes.annotate(f"exact score of code {best}", (1.5, to_reach), (0, 4), ha="center", **_OFFSET)
    axes.set_xlim(-0.6, len(search.scores) - 0.4)
    axes.set_xticks(range(len(search.scores)), [f"code {i}" for i in range(len(search.scores))])
    axes.set_ylabel("score (higher: nearer)")
    axes.set_title("fast scores; bars: their largest error", fontsize=10)


def _colors(search: Filtered) -> list[str]:
    """Blue for the nearest code, orange for others that are left, grey for those ruled out."""
    nearest = search.distances.argmin()
    return [
        _BLUE if code == nearest else _ORANGE if kept else _GREY
        for code, kept in enumerate(search.kept)
    ]


def _draw_scores(axes: Axes, search: Filtered) -> None:
    for kept, color in ((False, _GREY), (True, _ORANGE)):
        (places,) = np.nonzero(search.kept == kept)
        axes.errorbar(
            *(places, search.scores[places], search.error),
            fmt="o",
            color=color,
            markersize=4,
            elinewidth=1,
        )
    to_reach = search.bound + search.error  # the exact score of the code that was measured first
    axes.axhline(to_reach, color="black", linewidth=1.2)
    lowest, highest = axes.get_ylim()
    axes.set_ylim(lowest, highest + 0.05 * (highest - lowest))
    axes.axhspan(lowest, to_reach, color=_GREY, alpha=0.15, linewidth=0)
    place = len(search.scores)
    axes.set_xlim(-1, place * 1.42)  # the labels stand to the right of the codes
    axes.annotate("the best code's\nexact score", (place, to_reach), (4, 5), **_OFFSET)
    below = f"{np.sum(~search.kept)} bars end below:\nruled out"
    axes.annotate(below, (place, to_reach), (4, -6), va="top", **_OFFSET)
    axes.set_title(
        "1. A fast score in low precision for every code;\nbars: its proven largest error"
    )
    axes.set_xlabel(f"the {len(search.scores)} codes")
    axes.set_ylabel("score (higher: nearer)")
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_distances(axes: Axes, search: Filtered) -> None:
    (places,) = np.nonzero(search.kept)
    distances = search.distances[places]
    nearest = int(distances.argmin())
    colors = [_BLUE if row == nearest else _ORANGE for row in range(len(places))]
    axes.bar(range(len(places)), distances, width=0.6, color=colors)
    axes.annotate(
        "nearest", (nearest, distances[nearest]), (0, 4), ha="center", color=_BLUE, **_OFFSET
    )
    axes.set_ylim(0, distances.max() * 1.15)
    axes.set_title(f"2. The exact distance of\nthe {len(places)} codes that are left")
    axes.set_xlabel("code")
    axes.set_ylabel("float64 distance (lower: nearer)")
    axes.set_xticks(range(len(places)), list(map(str, places)))
    axes.set_yticks([])


def _two_digits(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Software": None})


def main(given: list[str] | None = None) -> int:
    """Draw the pictures and print where they are."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=__doc__)
    parser.add_argument("--out", type=Path, default=_IMAGES, help="folder of the pictures")
    folder = parser.parse_args(given).out
    search, drop_in = (
        json.loads((_RECORDS / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("search", "drop_in")
    )
    caption = f"Exact search and training, {search['threads']} threads of an AMD EPYC (Zen 5)"
    draw_speed_ups(folder / "speed_up.png", speed_ups(search, drop_in), caption)
    random = np.random.default_rng(0)
    draw_filter(
        folder / "filter.png",
        filtered(random.standard_normal(8), random.standard_normal((48, 8)), unit=0.3),
    )
    draw_example(folder / "example.png", EXAMPLE_Z, EXAMPLE_CODES)
    print(*(folder / f"{name}.png" for name in ("speed_up", "filter", "example")), sep="\n")
    return 0


if __name__ == "__main__":
    main()
