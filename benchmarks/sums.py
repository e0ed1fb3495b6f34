"""Times the segment sum and torch's ways to sum rows by code: ``python -m benchmarks.sums``."""

from typing import Any

import torch
from tqdm import tqdm

from benchmarks import command_line
from vqvae_fast.bench import environment, tables
from vqvae_fast.bench.data import Shape
from vqvae_fast.bench.exactness import wrong_sums
from vqvae_fast.bench.interleave import interleaved, ratio
from vqvae_fast.bench.peers import SUM_PEERS
from vqvae_fast.bench.threads import all_threads

SHAPES = (
    Shape(65536, 8192, 64),
    Shape(16384, 1024, 8),
    Shape(2048, 512, 64),
    Shape(2048, 65536, 32),
    Shape(4096, 16384, 256),
)
QUICK = (Shape(200, 30, 9), Shape(20, 300, 5))
OURS = SUM_PEERS[0].name


class WrongSumError(AssertionError):
    """A sum of ours is wrong, so nothing is timed."""


def compare(shape: Shape, rounds: int, min_seconds: float) -> dict[str, Any]:
    """Return the JSON record of one shape, for rows whose codes are drawn uniformly.

    Raises:
        WrongSumError: our sums or counts differ from those in float64.
    """
    generator = torch.Generator().manual_seed(0)
    src = torch.randn(shape.n, shape.d, generator=generator)
    indices = torch.randint(shape.k, (shape.n,), generator=generator)
    calls, wrong, skipped = {}, {}, {}
    for peer in SUM_PEERS:
        if reason := peer.unavailable():
            skipped[peer.name] = reason
            continue
        calls[peer.name] = peer.prepare(src, indices, shape.k)
        wrong[peer.name] = wrong_sums(*calls[peer.name](), src, indices)
    if wrong[OURS]:
        raise WrongSumError(f"{wrong[OURS]:.2%} of our sums or counts are wrong at {shape.name}")
    timings = interleaved(calls, rounds, min_seconds=min_seconds)
    return {
        "shape": shape._asdict(),
        "contenders": {
            name: {
                "seconds": timing._asdict(),
                "wrong": wrong[name],
                "times_slower_than_ours": ratio(timings[OURS], timing)._asdict(),
            }
            for name, timing in timings.items()
        },
        "skipped": skipped,
    }


def markdown(record: dict[str, Any]) -> str:
    """Return the record as tables."""
    parts = [
        tables.heading(record),
        "Float32 rows whose codes are drawn uniformly, from tensors to sums [K, D] and counts [K]. "
        f"Times are milliseconds: median (quartiles) of {record['rounds']} interleaved rounds. "
        "Wrong: sums that are farther from float64's than one rounding of the summands' "
        "magnitudes, as sums in float32 are.\n",
    ]
    for entry in record["results"]:
        n, k, d = entry["shape"].values()
        parts.append(f"\n## N={n}, K={k}, D={d}\n\n")
        rows = [
            (
                name,
                tables.milliseconds(line["seconds"]),
                tables.share(line["wrong"]),
                tables.times(line["times_slower_than_ours"]),
            )
            for name, line in entry["contenders"].items()
        ]
        parts.append(tables.table(("contender", "ms", "wrong", "ours is faster"), rows))
    parts.append("\nTimed:\n" + "".join(f"- {n}: {t}\n" for n, t in record["timed"].items()))
    parts.append(tables.skipped(record))
    return "".join(parts)


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Run, print the tables, write JSON and Markdown (a quick run only with --json)."""
    parser = command_line.parser("benchmarks.sums", __doc__, rounds=9)
    command_line.add_cpu_options(parser)
    options = parser.parse_args(given)
    rounds, min_seconds = (1, 0.0) if options.quick else (options.rounds, 0.05)
    with all_threads(options.threads):
        entries = [
            compare(shape, rounds, min_seconds)
            for shape in tqdm(
                options.shapes or (QUICK if options.quick else SHAPES), desc="sums", disable=None
            )
        ]
    record = environment.describe("benchmarks.sums", options.threads) | {
        "rounds": rounds,
        "timed": {peer.name: peer.timed for peer in SUM_PEERS},
        "skipped": {name: why for entry in entries for name, why in entry["skipped"].items()},
        "results": entries,
    }
    command_line.publish(record, markdown(record), options, "sums")
    return record


if __name__ == "__main__":
    main()
