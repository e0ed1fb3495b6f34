"""Compares two runs: ``python -m benchmarks.agreement FIRST.json SECOND.json``.

Both records must be of one benchmark on one machine, as ``--json`` writes them. A contender's ratio
to ours agrees if the second run's median lies between the lowest and the highest round of the first
run, which is the noise that a run states. The exit status is 1 if too few agree.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import results
from vqvae_fast.bench import tables

# Three passes see three states of a shared machine; the next pass may see a fourth.
LEAST_AGREEMENT = 0.9
_SAME = ("benchmark", "machine", "threads")


class Line(NamedTuple):
    """One contender at one shape: its ratio to ours in both runs."""

    name: str
    first: dict[str, Any]
    second: dict[str, Any]

    @property
    def moved(self) -> float:
        """The larger median over the smaller one."""
        low, high = sorted((self.first["median"], self.second["median"]))
        return float(high / low)

    @property
    def agrees(self) -> bool:
        """The second run's median is within the first run's rounds."""
        rounds = self.first["rounds"]
        return bool(min(rounds) <= self.second["median"] <= max(rounds))


def ratios(record: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("shape data: contender", ratio) of every contender that is compared with another."""
    for entry in record["results"]:
        n, k, d = entry["shape"].values()
        for name, line in entry["contenders"].items():
            ratio = line["times_slower_than_ours"]
            if ratio and set(ratio["rounds"]) != {1.0}:
                yield f"({n}, {k}, {d}) {entry.get('data', 'Gaussian')}: {name}", ratio


def compare(first: dict[str, Any], second: dict[str, Any]) -> list[Line]:
    """Return the ratios that both runs have.

    Raises:
        ValueError: the records are not of one benchmark and machine, or have no ratio in common.
    """
    for key in _SAME:
        if first.get(key) != second.get(key):
            raise ValueError(
                f"both runs must have one {key}, got {first.get(key)!r} and {second.get(key)!r}"
            )
    others = dict(ratios(second))
    lines = [Line(name, ratio, others[name]) for name, ratio in ratios(first) if name in others]
    if not lines:
        raise ValueError("the runs have no shape and contender in common")
    return lines


def summary(lines: list[Line]) -> dict[str, Any]:
    """Count the ratios that agree, and find the factors by which ratios moved between the runs."""
    moved = sorted(line.moved for line in lines)
    return {
        "ratios": len(lines),
        "agree": sum(line.agrees for line in lines),
        "moved_median": statistics.median(moved),
        "moved_most": moved[-1],
    }


def markdown(record: dict[str, Any], lines: list[Line]) -> str:
    """Return the summary and the ratios that disagree as Markdown."""
    text = (
        tables.heading(record)
        + f"Two runs of benchmarks.{record['benchmark']}, {' and '.join(record['dates'])}. "
        f"{record['agree']} of {record['ratios']} ratios to ours agree: the second run's median "
        "lies between the lowest and the highest round of the first. "
        f"From one run to the other a ratio moved by a factor of {record['moved_median']:.2f} "
        f"in the median, {record['moved_most']:.2f} at most.\n"
    )
    apart = [line for line in lines if not line.agrees]
    if apart:
        rows = [(line.name, _ranged(line.first), _ranged(line.second)) for line in apart]
        head = ("ratio", "first run (lowest-highest)", "second run")
        text += "\nApart:\n\n" + tables.table(head, rows)
    return text


def _ranged(ratio: dict[str, Any]) -> str:
    return "{:.3g}x ({:.3g}-{:.3g})".format(
        ratio["median"], min(ratio["rounds"]), max(ratio["rounds"])
    )


def main(given: list[str] | None = None) -> int:
    """Print how far they agree; return 1 if too few do, 2 if they cannot be compared."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement", description=__doc__)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write it, a table beside it")
    options = parser.parse_args(given)
    try:
        first, second = (
            json.loads(path.read_text(encoding="utf-8")) for path in (options.first, options.second)
        )
        lines = compare(first, second)
    except (OSError, ValueError, KeyError) as error:
        print(f"benchmarks.agreement: {error}", file=sys.stderr)
        return 2
    record = {key: value for key, value in first.items() if key != "results"}
    record |= summary(lines) | {"dates": [first["date"], second["date"]]}
    text = markdown(record, lines)
    print(text)
    if options.json:
        results.write(options.json, record, text)
    return 0 if record["agree"] >= LEAST_AGREEMENT * record["ratios"] else 1


if __name__ == "__main__":
    sys.exit(main())
