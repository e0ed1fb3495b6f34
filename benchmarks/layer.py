"""The quantizer layer, forward and backward, against its peer: ``python -m benchmarks.layer``."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import command_line, environment, memory, results
from benchmarks.data import (
    LAYER_SHAPES,
    TINY_SHAPES,
    Shape,
    Vectors,
    feature_map,
    gaussian,
    rows_of,
)
from benchmarks.exactness import smallest_distances
from benchmarks.interleave import interleaved, ratio
from benchmarks.peers import LAYER_PEERS, LayerPeer
from benchmarks.peers.base import StepResult
from benchmarks.threads import all_threads


class WrongLayerError(AssertionError):
    """Our own layer's output is not the nearest code or its gradient is wrong: nothing is timed."""


def _violating(vectors: Vectors, step: StepResult) -> float:
    """Share of rows whose output is farther from z than the nearest code, beyond the contract.

    The output stands for a code: z + (q - z) need not be q to the last bit, hence the slack of
    float32's rounding, relative to the vectors.
    """
    z, codebook, _ = vectors
    smallest = smallest_distances(z, codebook)
    distance = (z.double() - rows_of(step.quantized).double()).square().sum(dim=1)
    slack = 1e-5 * z.double().square().sum(dim=1)
    return float((distance > smallest.distances * (1 + 1e-5) + slack).double().mean())


def check(peer: LayerPeer, vectors: Vectors, step: StepResult) -> float:
    """Share of rows of a first step whose output is not the nearest code; ours must have none.

    Raises:
        WrongLayerError: the output or the gradient of one of our layers is not what the readable
            formula gives. A peer's share is recorded instead (and its gradient may be another).
    """
    violating = _violating(vectors, step)
    if peer.name.startswith("ours"):
        if violating:
            raise WrongLayerError(f"{peer.name}: {violating:.2%} of the outputs are not nearest")
        z = vectors.z.double()
        # The upstream gradient of one, straight through, and that of the commitment loss.
        expected = 1.0 + 0.25 * 2.0 / z.numel() * (z - rows_of(step.quantized).double())
        if not torch.allclose(rows_of(step.grad_z).double(), expected, rtol=1e-5, atol=1e-6):
            raise WrongLayerError(f"{peer.name}: gradient is not straight-through + commitment")
    return violating


def compare(vectors: Vectors, rounds: int, min_seconds: float) -> dict[str, Any]:
    """Check, then time the layers on the same feature map from the same codebook.

    Returns:
        The JSON record of one shape.

    Raises:
        WrongLayerError: our first step is not what the readable formula gives.
    """
    fmap: Tensor = feature_map(vectors.z)
    calls, violating, reasons = {}, {}, {}
    for peer in LAYER_PEERS:
        if reason := peer.unavailable():
            reasons[peer.name] = reason
            continue
        calls[peer.name] = peer.build(fmap, vectors.codebook)
        violating[peer.name] = check(peer, vectors, calls[peer.name]())
    timings = interleaved(calls, rounds, min_seconds=min_seconds)
    learning = {peer.name: peer.learning for peer in LAYER_PEERS}
    contenders = {}
    for name, timing in timings.items():
        own = timings.get(f"ours ({'EMA' if learning[name] == 'ema' else 'gradient'})")
        contenders[name] = {
            "learning": learning[name],
            "seconds": timing._asdict(),
            "violating_rows": violating[name],
            "times_slower_than_ours": ratio(own, timing)._asdict() if own else None,
        }
    return {
        "shape": vectors.shape._asdict(),
        "data": vectors.source,
        "contenders": contenders,
        "skipped": reasons,
    }


def run(
    shapes: Iterable[Shape], threads: int, rounds: int, min_seconds: float, with_memory: bool
) -> dict[str, Any]:
    """The whole record: head and one entry per shape."""
    entries = []
    with all_threads(threads):
        for shape in tqdm(list(shapes), desc="layer", unit="shape", disable=None):
            entry = compare(gaussian(shape), rounds, min_seconds)
            for name, line in entry["contenders"].items() if with_memory else ():
                peak = memory.measure("layer", name, shape, threads)
                line["peak_memory"] = peak.total if peak else None
            entries.append(entry)
    return environment.describe("benchmarks.layer", threads) | {
        "rounds": rounds,
        "timed": {peer.name: peer.timed for peer in LAYER_PEERS},
        "skipped": {name: why for entry in entries for name, why in entry["skipped"].items()},
        "results": entries,
    }


def markdown(record: dict[str, Any]) -> str:
    """The record as tables."""
    parts = [
        results.heading(record),
        "One training step of the layer alone: forward and backward on a float32 feature map "
        "[N / 64, D, 8, 8], Gaussian data. Times are milliseconds a step: median (quartiles) of "
        f"{record['rounds']} interleaved rounds. Memory is the peak of resident memory during a "
        "step over that before it, outputs and gradients included. The last column compares with "
        "our layer that learns the same way, round by round.\n",
    ]
    for entry in record["results"]:
        n, k, d = entry["shape"].values()
        parts.append(f"\n## N={n}, K={k}, D={d}\n\n")
        rows = []
        for name, line in entry["contenders"].items():
            slower = line["times_slower_than_ours"]
            rows.append(
                (
                    name,
                    results.milliseconds(line["seconds"]),
                    results.mebibytes(line.get("peak_memory")),
                    results.share(line["violating_rows"]),
                    results.times(slower) if slower else "-",
                )
            )
        head = ("layer", "ms", "peak MiB", "violating rows", "ours is faster")
        parts.append(results.table(head, rows))
    parts.append("\nTimed:\n" + "".join(f"- {n}: {t}\n" for n, t in record["timed"].items()))
    parts.append(results.skipped(record))
    return "".join(parts)


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Run, print the tables, write JSON and Markdown (a quick run only with --json)."""
    parser = command_line.parser("benchmarks.layer", __doc__, rounds=9)
    command_line.add_cpu_options(parser)
    options = parser.parse_args(given)
    shapes = options.shapes or (TINY_SHAPES if options.quick else LAYER_SHAPES)
    rounds, min_seconds = (1, 0.0) if options.quick else (options.rounds, 0.1)
    record = run(shapes, options.threads, rounds, min_seconds, not options.no_memory)
    command_line.publish(record, markdown(record), options, "layer")
    return record


if __name__ == "__main__":
    main()
