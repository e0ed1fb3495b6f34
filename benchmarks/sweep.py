"""Measures how time and memory grow with K, D and N: ``python -m benchmarks.sweep``."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks import command_line
from vqvae_fast.bench import environment, layer, memory, search, tables
from vqvae_fast.bench.data import Shape, gaussian
from vqvae_fast.bench.peers import LAYER_PEERS, OURS, SEARCH_PEERS
from vqvae_fast.bench.threads import all_threads

SEARCHES = tuple(
    peer
    for peer in SEARCH_PEERS
    if peer.name in (OURS.name, "torch addmm+argmin", "FAISS add+search")
)
LAYERS = tuple(
    peer for peer in LAYER_PEERS if peer.name in ("ours (EMA)", "vector-quantize-pytorch (EMA)")
)


class Sweep(NamedTuple):
    """A series of shapes in which one size grows.

    Attributes:
        axis: "n", "k" or "d", the size that grows.
        title: the size in words.
        shapes: the shapes, in the order of that size.
        with_layers: time the layer's training step, too, and measure the memory of both.
    """

    axis: str
    title: str
    shapes: tuple[Shape, ...]
    with_layers: bool = False


SWEEPS = (
    Sweep("k", "codes", tuple(Shape(2048, 512 << 2 * i, 32) for i in range(6)), True),
    Sweep("d", "length of a code", tuple(Shape(4096, 8192, 8 << i) for i in range(6))),
    Sweep("n", "vectors", tuple(Shape(4**i, 1024, 64) for i in range(8))),
)
# The kernel counts resident memory in batches of pages, so smaller numbers are noise without a
# slope.
_LEAST_MEMORY = 1 << 20
QUICK = (Sweep("k", "codes", (Shape(64, 16, 8), Shape(64, 32, 8), Shape(64, 64, 8)), True),)


def slope(sizes: Sequence[float], figures: Sequence[float]) -> float | None:
    """Return the exponent of a figure's growth in the upper half of the sizes (least squares)."""
    first = len(sizes) // 2 if len(sizes) > 3 else 0
    x = [math.log(size) for size in sizes[first:]]
    y = [math.log(figure) for figure in figures[first:]]
    if len(x) < 2:
        return None
    centre_x, centre_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - centre_x) ** 2 for a in x)
    return sum((a - centre_x) * (b - centre_y) for a, b in zip(x, y, strict=True)) / spread


def with_memory(entry: dict[str, Any], maker: str, shape: Shape, threads: int) -> None:
    """Add each contender's peak memory, in bytes."""
    for name, line in entry["contenders"].items():
        peak = memory.measure(maker, name, shape, threads)
        line["peak_memory"] = peak.total if peak else None


def run_sweep(
    sweep: Sweep, threads: int, rounds: int, min_seconds: float, measures_memory: bool
) -> dict[str, Any]:
    """Return the record of one sweep: for each size the entries of ``search`` and ``layer``."""
    entries: dict[str, list[dict[str, Any]]] = {"search": [], "layer": []}
    for shape in tqdm(sweep.shapes, desc=f"sweep over {sweep.title}", disable=None):
        vectors = gaussian(shape)
        timed = search.measure(vectors, None, rounds, min_seconds, SEARCHES)
        found = search.entry(vectors, [timed])
        if sweep.with_layers and measures_memory:
            with_memory(found, memory.SEARCH, shape, threads)
        entries["search"].append(found)
        if sweep.with_layers:
            found = layer.compare(vectors, rounds, min_seconds, LAYERS)
            if measures_memory:
                with_memory(found, memory.LAYER, shape, threads)
            entries["layer"].append(found)
    return {"axis": sweep.axis, "title": sweep.title, **entries}


def series(sweep: Mapping[str, Any], kind: str, figure: str) -> dict[str, list[tuple[int, float]]]:
    """Return each contender's points (size, figure) in a sweep's record.

    Args:
        sweep: a sweep in the record.
        kind: "search" or "layer".
        figure: "seconds" or "peak_memory".
    """
    points: dict[str, list[tuple[int, float]]] = {}
    for entry in sweep[kind]:
        for name, line in entry["contenders"].items():
            value = line.get(figure)
            if figure == "seconds" or (value or 0) >= _LEAST_MEMORY:
                value = value["median"] if figure == "seconds" else value
                points.setdefault(name, []).append((entry["shape"][sweep["axis"]], value))
    return points


def markdown(record: dict[str, Any]) -> str:
    """Return the record as tables, with slopes."""
    parts = [
        tables.heading(record),
        f"Float32, Gaussian data; medians of {record['rounds']} interleaved rounds. Memory is the "
        "peak of resident memory during a call over that before it, where that is 1 MiB or more. "
        "The last row is the exponent with which a figure grows over the upper half of the sizes: "
        "1 is in proportion.\n",
    ]
    for sweep in record["sweeps"]:
        for kind in ("search", "layer"):
            for figure, unit in (("seconds", "ms"), ("peak_memory", "MiB")):
                lines = series(sweep, kind, figure)
                if lines:
                    title = f"{kind}, {unit}, over the {sweep['title']}"
                    parts.append(f"\n## {title}\n\n" + _table(sweep, kind, lines, figure))
    return "".join(parts)


def _table(
    sweep: dict[str, Any], kind: str, lines: dict[str, list[tuple[int, float]]], figure: str
) -> str:
    scale = 1e3 if figure == "seconds" else 1 / (1 << 20)
    rows = []
    for entry in sweep[kind]:
        size = entry["shape"][sweep["axis"]]
        cells = [
            f"{dict(points)[size] * scale:.3g}" if size in dict(points) else "-"
            for points in lines.values()
        ]
        rows.append((str(size), *cells))
    slopes = [slope(*zip(*points, strict=True)) for points in lines.values()]
    rows.append(("grows as", *("-" if s is None else f"^{s:.2f}" for s in slopes)))
    return tables.table((sweep["axis"].upper(), *lines), rows) + _left_out(sweep[kind])


def _left_out(entries: list[dict[str, Any]]) -> str:
    reasons = [
        f"- {Shape(**entry['shape']).name}: {name} {reason}\n"
        for entry in entries
        for name, reason in entry["skipped"].items()
    ]
    return "\nLeft out:\n" + "".join(reasons) if reasons else ""


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Run, print the tables, write JSON and Markdown (a quick run only with --json)."""
    parser = command_line.parser("benchmarks.sweep", __doc__, rounds=5, shapes=False)
    command_line.add_cpu_options(parser)
    options = parser.parse_args(given)
    rounds, min_seconds = (1, 0.0) if options.quick else (options.rounds, 0.05)
    head = environment.describe("benchmarks.sweep", options.threads)
    with all_threads(options.threads):
        sweeps = [
            run_sweep(sweep, options.threads, rounds, min_seconds, not options.no_memory)
            for sweep in (QUICK if options.quick else SWEEPS)
        ]
    record = head | {"rounds": rounds, "sweeps": sweeps}
    command_line.publish(record, markdown(record), options, "sweep")
    return record


if __name__ == "__main__":
    main()
