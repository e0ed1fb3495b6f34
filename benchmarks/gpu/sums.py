"""Times the segment sum, which the EMA update and the codebook's gradient use."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.contest import Clock, Contender, compete
from vqvae_fast.bench.data import Shape
from vqvae_fast.bench.exactness import wrong_sums
from vqvae_fast.bench.peers import SUM_PEERS, SumPeer


class WrongSumError(AssertionError):
    """A sum of ours is wrong, so nothing is timed."""


def compare(
    shape: Shape, skewed: bool, clock: Clock, rounds: int, device: torch.device
) -> dict[str, Any]:
    """Return the JSON record of one shape; ``skewed``: half of the rows chose one code."""
    generator = torch.Generator(device).manual_seed(0)
    src = torch.randn(shape.n, shape.d, generator=generator, device=device)
    indices = torch.randint(shape.k, (shape.n,), generator=generator, device=device)
    if skewed:
        indices[::2] = shape.k // 2
    outcome = compete(
        [_contender(peer, src, indices, shape.k) for peer in SUM_PEERS],
        lambda name: SUM_PEERS[0].name,
        clock,
        rounds,
    )
    moved = 4.0 * (shape.n * shape.d + shape.k * shape.d)
    for line in outcome.lines.values():
        line["gb_per_s"] = moved / line["seconds"]["median"] / 1e9
    return {
        "kind": "segment sum",
        "shape": shape._asdict(),
        "data": "half of the rows in one segment" if skewed else "uniform segments",
        "dtype": "float32",
        "contenders": outcome.lines,
        "failed": outcome.failed,
        "skipped": outcome.skipped,
    }


def _contender(peer: SumPeer, src: Tensor, indices: Tensor, count: int) -> Contender:
    ours = peer.name.startswith("ours")

    def check(result: tuple[Tensor, Tensor]) -> float:
        share = wrong_sums(*result, src, indices)
        if ours and share:
            raise WrongSumError(f"{share:.2%} of {peer.name}'s sums or counts are wrong")
        return share

    return Contender(
        peer.name,
        ours,
        peer.unavailable(),
        lambda: peer.prepare(src, indices, count),
        check,
        False,
    )
