"""Times residual quantization in codebooks that do not change, beside its peers."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from vqvae_fast.bench import memory
from vqvae_fast.bench.contest import (
    Contender,
    FailedContenderError,
    check_again,
    check_ours,
    is_ours,
    leaver,
)
from vqvae_fast.bench.data import Shape, gaussian_stages
from vqvae_fast.bench.exactness import violating_stages
from vqvae_fast.bench.interleave import interleaved, ratio
from vqvae_fast.bench.peers import FROZEN_RESIDUAL_PEERS, ResidualPeer
from vqvae_fast.bench.threads import all_threads


class Stages(NamedTuple):
    """The shape of every stage, and the number of stages."""

    shape: Shape
    number: int

    @classmethod
    def parse(cls, text: str) -> "Stages":
        """Read "8,125,1024,128": stages, rows, codes and their length.

        Raises:
            ValueError: the text is not four positive numbers.
        """
        number, _, shape = text.partition(",")
        if not number.strip().isdigit() or not int(number) or shape.count(",") != 2:
            raise ValueError(f"stages must be four positive numbers Q,N,K,D; got {text!r}")
        return cls(Shape.parse(shape), int(number))


def compare(
    stages: Stages,
    rounds: int,
    min_seconds: float,
    peers: Sequence[ResidualPeer] | None = None,
) -> dict[str, Any]:
    """Check and time the peers on the same vectors and codebooks; the first one is ours.

    Returns:
        The JSON record of one shape.

    Raises:
        InexactError: a stage of ours has chosen a code that is not the nearest.
        FailedContenderError: ours gives no answer. A peer that fails is left out, with the reason.
    """
    z, codebooks = gaussian_stages(*stages)

    def judge(indices: Tensor) -> float:
        return violating_stages(z, codebooks, indices)

    ready: dict[str, Contender] = {}
    reasons = {}
    for peer in FROZEN_RESIDUAL_PEERS if peers is None else peers:
        reason = peer.unavailable() or memory.too_large(peer.matrices, stages.shape)
        if reason:
            reasons[peer.name] = reason
            continue
        try:
            contender = Contender(peer.prepare, (z, codebooks), judge)
            contender.check()
        except FailedContenderError as error:
            if is_ours(peer.name):
                raise
            reasons[peer.name] = str(error)
            continue
        ready[peer.name] = contender
    where = f"at {stages.number} stages of {stages.shape.name}"
    check_ours(ready, where)
    timings = interleaved(
        {name: contender.call for name, contender in ready.items()},
        rounds,
        min_seconds=min_seconds,
        failed=leaver(reasons),
    )
    check_again(ready, where, reasons)
    ours = next(iter(timings.values()))
    return {
        "shape": stages.shape._asdict(),
        "stages": stages.number,
        "contenders": {
            name: {
                "seconds": timing._asdict(),
                "violating_rows": ready[name].wrong,
                "times_slower_than_ours": ratio(ours, timing)._asdict(),
            }
            for name, timing in timings.items()
            if name not in reasons
        },
        "skipped": reasons,
    }


def run(
    shapes: Iterable[Stages],
    threads: int,
    rounds: int,
    min_seconds: float,
    found: Callable[[dict[str, Any]], object] = lambda entry: None,
    peers: Sequence[ResidualPeer] | None = None,
) -> dict[str, Any]:
    """Return the record without its head; pass the entry of each shape to ``found`` at once."""
    peers = FROZEN_RESIDUAL_PEERS if peers is None else peers
    entries = []
    with all_threads(threads):
        for stages in shapes:
            entries.append(compare(stages, rounds, min_seconds, peers))
            found(entries[-1])
    return {
        "rounds": rounds,
        "timed": {peer.name: peer.timed for peer in peers},
        "skipped": {name: why for entry in entries for name, why in entry["skipped"].items()},
        "results": entries,
    }
