"""Residual VQ for inference: all stages, and whether each chose its nearest code."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.data import Shape
from benchmarks.exactness import smallest_distances, violating_share
from benchmarks.gpu.contest import Clock, Contender, compete
from benchmarks.gpu.search import InexactError
from benchmarks.peers import RESIDUAL_PEERS, ResidualPeer

_SAMPLE = 256


def compare(
    shape: Shape, stages: int, clock: Clock, rounds: int, device: torch.device
) -> dict[str, Any]:
    """The JSON record of one shape with ``stages`` books; each fits what the last has left."""
    generator = torch.Generator(device).manual_seed(0)
    z = torch.randn(shape.n, shape.d, generator=generator, device=device)
    codebooks = torch.randn(stages, shape.k, shape.d, generator=generator, device=device)
    codebooks *= 0.7 ** torch.arange(stages, device=device)[:, None, None]
    outcome = compete(
        [_contender(peer, z, codebooks) for peer in RESIDUAL_PEERS],
        lambda name: RESIDUAL_PEERS[0].name,
        clock,
        rounds,
    )
    for line in outcome.lines.values():
        line["tflops"] = stages * shape.flops / line["seconds"]["median"] / 1e12
    return {
        "kind": "residual",
        "shape": shape._asdict(),
        "data": f"{stages} stages",
        "dtype": "float32",
        "contenders": outcome.lines,
        "failed": outcome.failed,
        "skipped": outcome.skipped,
    }


def _contender(peer: ResidualPeer, z: Tensor, codebooks: Tensor) -> Contender:
    ours = peer.name.startswith("ours")

    def check(indices: Tensor) -> float:
        residual, wrong = z[:_SAMPLE], 0.0
        for codebook, choice in zip(codebooks, indices[:_SAMPLE].unbind(1), strict=True):
            smallest = smallest_distances(residual, codebook)
            wrong = max(wrong, violating_share(residual, codebook, choice, smallest))
            residual = residual - codebook[choice]
        if ours and wrong:
            raise InexactError(f"{wrong:.2%} of a stage's rows of {peer.name} are not the nearest")
        return wrong

    return Contender(
        peer.name, ours, peer.unavailable(), lambda: peer.prepare(z, codebooks), check, True
    )
