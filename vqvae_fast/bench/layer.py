"""Times the quantizer layer, forward and backward, beside its peers."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from vqvae_fast.bench import memory, tables
from vqvae_fast.bench.data import (
    Shape,
    Vectors,
    feature_map,
    gaussian,
    rows_of,
)
from vqvae_fast.bench.exactness import Smallest, smallest_distances
from vqvae_fast.bench.interleave import interleaved, ratio
from vqvae_fast.bench.peers import LAYER_PEERS, LayerPeer
from vqvae_fast.bench.peers.base import StepResult
from vqvae_fast.bench.threads import all_threads


class WrongLayerError(AssertionError):
    """Our layer's output is not the nearest code, or its gradient is wrong, so nothing is timed."""


def check_output(
    peer: LayerPeer, vectors: Vectors, quantized: Tensor, smallest: Smallest | None = None
) -> float:
    """Return the share of rows of the output that are farther from z than the nearest code.

    The output z + (q - z) need not equal the code q to the last bit, so the check allows for
    float32's rounding relative to the vectors.

    Args:
        peer: the layer of this output.
        vectors: the layer's input, and its codebook at that time.
        quantized: the output [B, D, h, w].
        smallest: the distances to the nearest codes, if they are known already.

    Raises:
        WrongLayerError: our layer has such rows. A peer's share is only recorded.
    """
    z, codebook, _ = vectors
    smallest = smallest or smallest_distances(z, codebook)
    distance = (z.double() - rows_of(quantized).double()).square().sum(dim=1)
    slack = 1e-5 * z.double().square().sum(dim=1)
    far = distance > smallest.distances * (1 + 1e-5) + slack
    violating = float(far.double().mean())
    if violating and peer.name.startswith("ours"):
        raise WrongLayerError(f"{peer.name}: {violating:.2%} of the outputs are not nearest")
    return violating


def check(
    peer: LayerPeer, vectors: Vectors, step: StepResult, smallest: Smallest | None = None
) -> float:
    """Check the output of a first training step, and the gradient of our layer.

    Raises:
        WrongLayerError: the output or the gradient of one of our layers differs from the readable
            formula. A peer's share is only recorded, and its gradient may differ.
    """
    violating = check_output(peer, vectors, step.quantized, smallest)
    if peer.name.startswith("ours"):
        z = vectors.z.double()
        # The expected gradient is the upstream gradient of 1, passed straight through, plus that of
        # the commitment loss.
        expected = 1.0 + 0.25 * 2.0 / z.numel() * (z - rows_of(step.quantized).double())
        if not torch.allclose(rows_of(step.grad_z).double(), expected, rtol=1e-5, atol=1e-6):
            raise WrongLayerError(f"{peer.name}: gradient is not straight-through + commitment")
    return violating


def compare(
    vectors: Vectors, rounds: int, min_seconds: float, peers: Sequence[LayerPeer] | None = None
) -> dict[str, Any]:
    """Check and time the layers on the same feature map and codebook.

    Returns:
        The JSON record of one shape. ``peers`` names the layers; None takes all.

    Raises:
        WrongLayerError: our first step differs from the readable formula.
    """
    fmap: Tensor = feature_map(vectors.z)
    calls, violating, reasons = {}, {}, {}
    for peer in LAYER_PEERS if peers is None else peers:
        reason = peer.unavailable() or memory.too_large(peer.matrices, vectors.shape)
        if reason:
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
    shapes: Iterable[Shape],
    threads: int,
    rounds: int,
    min_seconds: float,
    with_memory: bool,
    found: Callable[[dict[str, Any]], object] = lambda entry: None,
) -> dict[str, Any]:
    """Return the record without its head; pass the entry of each shape to ``found`` at once."""
    entries = []
    with all_threads(threads):
        for shape in shapes:
            entry = compare(gaussian(shape), rounds, min_seconds)
            for name, line in entry["contenders"].items() if with_memory else ():
                peak = memory.measure(memory.LAYER, name, shape, threads)
                line["peak_memory"] = peak.total if peak else None
            entries.append(entry)
            found(entry)
    return {
        "rounds": rounds,
        "timed": {peer.name: peer.timed for peer in LAYER_PEERS},
        "skipped": {name: why for entry in entries for name, why in entry["skipped"].items()},
        "results": entries,
    }


def markdown(record: dict[str, Any]) -> str:
    """Return the record as Markdown tables."""
    parts = [
        tables.heading(record),
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
                    tables.milliseconds(line["seconds"]),
                    tables.mebibytes(line.get("peak_memory")),
                    tables.share(line["violating_rows"]),
                    tables.times(slower) if slower else "-",
                )
            )
        head = ("layer", "ms", "peak MiB", "violating rows", "ours is faster")
        parts.append(tables.table(head, rows))
    parts.append("\nTimed:\n" + "".join(f"- {n}: {t}\n" for n, t in record["timed"].items()))
    parts.append(tables.skipped(record))
    return "".join(parts)
