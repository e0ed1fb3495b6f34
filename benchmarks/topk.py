"""Times the k nearest codes and their peers: ``python -m benchmarks.topk``."""

import math
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import command_line
from vqvae_fast.bench import environment, tables
from vqvae_fast.bench.data import Shape, gaussian
from vqvae_fast.bench.exactness import violating_share_of_top
from vqvae_fast.bench.interleave import interleaved, ratio
from vqvae_fast.bench.peers import top_code_peers
from vqvae_fast.bench.threads import all_threads

SHAPES = (
    Shape(2048, 16384, 8),
    Shape(2048, 16384, 64),
    Shape(1024, 16384, 256),
    Shape(1024, 65536, 32),
)
NUMBERS = (1, 10, 100, 1024)
QUICK, QUICK_NUMBERS = (Shape(70, 300, 16),), (1, 7)
OURS = top_code_peers(1)[0].name
# The answers of so many rows, spread over all, are compared with every float64 distance.
_CHECKED_ROWS = 64


class WrongCodeError(AssertionError):
    """A code of ours is not the one that belongs at its place, so nothing is timed."""


def compare(shape: Shape, k: int, rounds: int, min_seconds: float) -> dict[str, Any]:
    """Return the JSON record of one shape and one k, on Gaussian vectors and codes.

    Raises:
        WrongCodeError: one of our codes is farther than the contract allows.
    """
    data = gaussian(shape, torch.float32)
    z, codebook = data.z, data.codebook
    checked = torch.arange(0, shape.n, math.ceil(shape.n / _CHECKED_ROWS))
    calls, wrong, skipped = {}, {}, {}
    for peer in top_code_peers(k):
        if reason := peer.why_not("float32", shape):
            skipped[peer.name] = reason
            continue
        calls[peer.name] = peer.prepare(z, codebook)
        answer = calls[peer.name]()
        wrong[peer.name] = violating_share_of_top(z[checked], codebook, answer[checked])
        if wrong[peer.name] and peer.name.startswith(OURS):
            raise WrongCodeError(f"{wrong[peer.name]:.2%} of our codes are wrong: {shape}, k={k}")
    timings = interleaved(calls, rounds, min_seconds=min_seconds)
    return {
        "shape": shape._asdict(),
        "k": k,
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
        "Float32, Gaussian; from tensors to indices [N, k], the nearest code first. Times are "
        f"milliseconds: median (quartiles) of {record['rounds']} interleaved rounds. Wrong: codes "
        f"of {_CHECKED_ROWS} rows that are farther than the float64 distance that belongs at their "
        "place, by more than 1e-6 of it.\n",
    ]
    for entry in record["results"]:
        n, k, d = entry["shape"].values()
        parts.append(f"\n## N={n}, K={k}, D={d}, k={entry['k']}\n\n")
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
    parser = command_line.parser("benchmarks.topk", __doc__, rounds=5)
    command_line.add_cpu_options(parser)
    options = parser.parse_args(given)
    rounds, min_seconds = (1, 0.0) if options.quick else (options.rounds, 0.02)
    shapes = options.shapes or (QUICK if options.quick else SHAPES)
    numbers = QUICK_NUMBERS if options.quick else NUMBERS
    cases = [(shape, k) for shape in shapes for k in numbers if k <= shape.k]
    with all_threads(options.threads):
        entries = [
            compare(shape, k, rounds, min_seconds)
            for shape, k in tqdm(cases, desc="topk", disable=None)
        ]
    record = environment.describe("benchmarks.topk", options.threads) | {
        "rounds": rounds,
        "timed": {peer.name: peer.timed for peer in top_code_peers(1)},
        "skipped": {name: why for entry in entries for name, why in entry["skipped"].items()},
        "results": entries,
    }
    command_line.publish(record, markdown(record), options, "topk")
    return record


if __name__ == "__main__":
    main()
