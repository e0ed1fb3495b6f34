"""Draws a results folder's charts and writes their page: ``python -m benchmarks.report``."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import charts, results
from vqvae_fast.bench.data import Shape

Record = dict[str, Any]


class Picture(NamedTuple):
    """A chart of one record.

    Attributes:
        name: the name of the PNG.
        record: the name of the JSON.
        caption: a sentence about the chart.
        draw: draws (path, record); returns whether the record has data for the chart.
    """

    name: str
    record: str
    caption: str
    draw: Callable[[Path, Record], bool]


class BadRecordError(ValueError):
    """A record differs from what the benchmark of its name writes; the message says where."""


def _search_speed_up(data: str) -> Callable[[Path, Record], bool]:
    def draw(path: Path, record: Record) -> bool:
        rows = [
            (
                Shape(**entry["shape"]).title,
                {
                    name: line["times_slower_than_ours"]
                    for name, line in entry["contenders"].items()
                    if name != "ours"
                },
            )
            for entry in record["results"]
            if entry["data"] == data and len(entry["contenders"]) > 1
        ]
        if rows:
            charts.speed_up(path, rows, f"The search, {data} vectors and codes (N x K x D)")
        return bool(rows)

    return draw


def _layer_speed_up(path: Path, record: Record) -> bool:
    rows = [
        (
            Shape(**entry["shape"]).name,
            {
                name: line["times_slower_than_ours"]
                for name, line in entry["contenders"].items()
                if not name.startswith("ours")
            },
        )
        for entry in record["results"]
    ]
    charts.speed_up(path, rows, "A training step of the layer (N x K x D)")
    return True


def _drop_in_speed_up(path: Path, record: Record) -> bool:
    rows = [
        (
            f"{entry['configuration']}\n{Shape(**entry['shape']).name}",
            {"vector-quantize-pytorch": entry["times_faster"]},
        )
        for entry in record["results"]
    ]
    charts.speed_up(path, rows, "A training step of the drop-ins (N x K x D)")
    return True


def _roofline(path: Path, record: Record) -> bool:
    limits = record.get("limits") or {}
    roofs = {"float32": (limits.get("float32_gflops") or record["peak"]["gflops"]) * 1e9}
    for key, name in (
        ("int8_gops", "int8"),
        ("bfloat16_gflops", "bfloat16"),
        ("amx_int8_gops", "AMX int8"),
        ("amx_bfloat16_gflops", "AMX bfloat16"),
    ):
        if limits.get(key):
            roofs[name] = limits[key] * 1e9
    read = limits.get("read_gb_per_s")
    shown = ("ours", "torch addmm+argmin", "torch.compile", "FAISS search", "scikit-learn")
    points = charts.search_points(record["results"])
    charts.roofline(
        path,
        {name: points[name] for name in shown if name in points},
        roofs,
        read * 1e9 if read else None,
    )
    return True


def _scaling(axis: str, kind: str, title: str) -> Callable[[Path, Record], bool]:
    def draw(path: Path, record: Record) -> bool:
        for sweep in record["sweeps"]:
            if sweep["axis"] == axis and sweep[kind]:
                charts.scaling(path, sweep, kind, title)
                return True
        return False

    return draw


def _training(path: Path, record: Record) -> bool:
    runs = {name: run for name, run in record["runs"].items() if run.get("curve")}
    if runs:
        charts.training_curves(path, runs)
    return bool(runs)


def _alive(path: Path, record: Record) -> bool:
    if record["runs"]:
        charts.alive(path, record["runs"].values())
    return bool(record["runs"])


PICTURES = (
    Picture(
        "search_gaussian",
        "search",
        "How many times faster our search is than each peer, Gaussian numbers.",
        _search_speed_up("Gaussian"),
    ),
    Picture(
        "search_trained",
        "search",
        "The same with held-out latents and codes of trained models.",
        _search_speed_up("trained"),
    ),
    Picture(
        "roofline",
        "search",
        "What each search reaches, beside what the machine does at most. Ours passes the float32 "
        "roof because integers rule most codes out.",
        _roofline,
    ),
    Picture("layer", "layer", "The quantizer layer's training step.", _layer_speed_up),
    Picture("drop_in", "drop_in", "The drop-in modules' training steps.", _drop_in_speed_up),
    Picture(
        "codes_search",
        "sweep",
        "Time and memory of the search over the number of codes. A line that grows as ^1.00 is in "
        "proportion to it.",
        _scaling("k", "search", "The search over the number of codes (N = 2048, D = 32)"),
    ),
    Picture(
        "codes_layer",
        "sweep",
        "Time and memory of the layer's training step over the number of codes.",
        _scaling(
            "k", "layer", "The layer's training step over the number of codes (N = 2048, D = 32)"
        ),
    ),
    Picture(
        "length",
        "sweep",
        "Time of the search over the length of the codes.",
        _scaling("d", "search", "The search over the length of a code (N = 4096, K = 8192)"),
    ),
    Picture(
        "vectors",
        "sweep",
        "Time of the search over the number of vectors.",
        _scaling("n", "search", "The search over the number of vectors (K = 1024, D = 64)"),
    ),
    Picture("training", "training", "Training runs of ours and of the reference.", _training),
    Picture(
        "alive",
        "alive",
        "What more codes bring: the error of held-out crops, and how many codes are in use there.",
        _alive,
    ),
)


def load(path: Path) -> Record | None:
    """Read a record; return None if there is no such file.

    Raises:
        BadRecordError: it is not JSON.
    """
    if not path.is_file():
        return None
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadRecordError(f"{path.name} is not JSON: {error}") from error
    return record


def write(folder: Path) -> Path:
    """Draw all charts of a results folder and the page that shows them, ``report.md``.

    Raises:
        FileNotFoundError: there is no record in the folder.
        BadRecordError: a record lacks something.
    """
    records = {picture.record: load(folder / f"{picture.record}.json") for picture in PICTURES}
    if not any(records.values()):
        raise FileNotFoundError(f"{folder} holds no records: run the benchmarks first")
    parts = [f"# Charts: {folder.name}\n"]
    for picture in PICTURES:
        record = records[picture.record]
        if record is None:
            continue
        path = folder / f"{picture.name}.png"
        try:
            drawn = picture.draw(path, record)
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise BadRecordError(
                f"{picture.record}.json does not fit {picture.name}: {type(error).__name__} {error}"
            ) from error
        if drawn:
            parts.append(
                f"\n![{picture.caption}]({path.name})\n\n{picture.caption} "
                f"`{record['command']}`, {record['date']}, {record['cpu']}, "
                f"{record['threads']} threads; "
                f"[{picture.record}.md]({picture.record}.md) has the figures.\n"
            )
    missing = sorted(name for name, record in records.items() if record is None)
    if missing:
        parts.append(f"\nNo records of: {', '.join(missing)}.\n")
    page = folder / "report.md"
    page.write_text("".join(parts), encoding="utf-8")
    return page


def main(given: list[str] | None = None) -> int:
    """Draw the charts, and print the page's path."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=results.default_path("").parent,
        help="of records; this machine's unless given",
    )
    options = parser.parse_args(given)
    try:
        print(write(options.folder))
    except (FileNotFoundError, BadRecordError) as error:
        parser.exit(1, f"benchmarks.report: {error}\n")
    return 0


if __name__ == "__main__":
    main()
