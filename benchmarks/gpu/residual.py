"""Times residual VQ for inference, and checks that each stage chose its nearest code."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.contest import Clock, Contender, compete
from vqvae_fast.bench.contest import InexactError
from vqvae_fast.bench.data import Shape, gaussian_stages
from vqvae_fast.bench.exactness import violating_stages
from vqvae_fast.bench.peers import GPU_RESIDUAL_PEERS, ResidualPeer

_SAMPLE = 256


def compare(
    shape: Shape, stages: int, clock: Clock, rounds: int, device: torch.device
) -> dict[str, Any]:
    """Return the JSON record of one shape with ``stages`` books."""
    z, codebooks = gaussian_stages(shape, stages, device)
    outcome = compete(
        [_contender(peer, z, codebooks) for peer in GPU_RESIDUAL_PEERS],
        lambda name: GPU_RESIDUAL_PEERS[0].name,
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
        wrong = violating_stages(z[:_SAMPLE], codebooks, indices[:_SAMPLE])
        if ours and wrong:
            raise InexactError(f"{wrong:.2%} of a stage's rows of {peer.name} are not the nearest")
        return wrong

    return Contender(
        peer.name, ours, peer.unavailable(), lambda: peer.prepare(z, codebooks), check, True
    )
