"""Times residual quantization in codebooks that do not change, beside its peers."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from vqvae_fast.bench import memory
from vqvae_fast.bench.data import Shape, gaussian_stages
from vqvae_fast.bench.exactness import violating_stages
from vqvae_fast.bench.interleave import interleaved, ratio
from vqvae_fast.bench.peers import FROZEN_RESIDUAL_PEERS
from vqvae_fast.bench.search import InexactError
from vqvae_fast.bench.threads import all_threads


class Stages(NamedTuple):
    """The shape of every stage, and the number of stages."""

    shape: Shape
    number: int


def compare(stages: Stages, rounds: int, min_seconds: float) -> dict[str, Any]:
    """Check and time the peers on the same vectors and codebooks; the first one is ours.

    Returns:
        The JSON record of one shape.

    Raises:
        InexactError: a stage of ours has chosen a code that is not the nearest.
    """
    z, codebooks = gaussian_stages(*stages)
    calls, violating, reasons = {}, {}, {}
    for peer in FROZEN_RESIDUAL_PEERS:
        reason = peer.unavailable() or memory.too_large(peer.matrices, stages.shape)
        if reason:
            reasons[peer.name] = reason
            continue
        calls[peer.name] = peer.prepare(z, codebooks)
        violating[peer.name] = violating_stages(z, codebooks, calls[peer.name]())
        wrong = violating[peer.name]
        if wrong and peer.name.startswith("ours"):
            raise InexactError(
                f"{wrong:.2%} of the rows of {peer.name!r} at {stages.number} stages of "
                f"{stages.shape.name} chose a code that is not the nearest"
            )
    timings = interleaved(calls, rounds, min_seconds=min_seconds)
    ours = next(iter(timings.values()))
    return {
        "shape": stages.shape._asdict(),
        "stages": stages.number,
        "contenders": {
            name: {
                "seconds": timing._asdict(),
                "violating_rows": violating[name],
                "times_slower_than_ours": ratio(ours, timing)._asdict(),
            }
            for name, timing in timings.items()
        },
        "skipped": reasons,
    }


def run(
    shapes: Iterable[Stages],
    threads: int,
    rounds: int,
    min_seconds: float,
    found: Callable[[dict[str, Any]], object] = lambda entry: None,
) -> dict[str, Any]:
    """Return the record without its head; pass the entry of each shape to ``found`` at once."""
    entries = []
    with all_threads(threads):
        for stages in shapes:
            entries.append(compare(stages, rounds, min_seconds))
            found(entries[-1])
    return {
        "rounds": rounds,
        "timed": {peer.name: peer.timed for peer in FROZEN_RESIDUAL_PEERS},
        "skipped": {name: why for entry in entries for name, why in entry["skipped"].items()},
        "results": entries,
    }
