"""Ways to quantize in stages, for inference; ours is first."""

import torch
from torch import Tensor

import vqvae_fast
from vqvae_fast.backends.reference import ops as reference
from vqvae_fast.bench.peers.base import ResidualPeer, Search, needs


def _ours(z: Tensor, codebooks: Tensor) -> Search:
    return lambda: vqvae_fast.residual_nearest_code(z, codebooks).indices


def _ours_packed(z: Tensor, codebooks: Tensor) -> Search:
    packed = vqvae_fast.pack(codebooks)
    return lambda: vqvae_fast.residual_nearest_code(z, packed).indices


def _stages(z: Tensor, codebooks: Tensor) -> Search:
    search = torch.ops.vqvae_fast.nearest_code
    return lambda: reference.residual_nearest_code(z, codebooks, nearest_code=search)[0]


def _torch(z: Tensor, codebooks: Tensor) -> Search:
    halves = codebooks.square().sum(dim=2).mul(0.5)

    def call() -> Tensor:
        residual, indices = z, []
        for codebook, half in zip(codebooks, halves, strict=True):
            indices.append(torch.addmm(half, residual, codebook.T, alpha=-1.0).argmin(dim=1))
            residual = residual - codebook[indices[-1]]
        return torch.stack(indices, dim=1)

    return call


def _vqp(z: Tensor, codebooks: Tensor) -> Search:
    from vector_quantize_pytorch import ResidualVQ

    stages, num_codes, dim = codebooks.shape
    layer = ResidualVQ(dim=dim, num_quantizers=stages, codebook_size=num_codes)
    layer = layer.to(z.device).eval()
    with torch.no_grad():
        for stage, codebook in zip(layer.layers, codebooks, strict=True):
            stage._codebook.embed.copy_(codebook[None])

    @torch.no_grad()
    def call() -> Tensor:
        indices: Tensor = layer(z[None])[1]
        return indices[0]

    return call


OURS = ResidualPeer("ours", "residual_nearest_code: on a GPU one launch where the books fit", _ours)
PACKED = ResidualPeer(
    "ours, packed", "all stages in one call; the codebooks are packed beforehand", _ours_packed
)
KEPT_NORMS = ResidualPeer(
    "torch addmm+argmin",
    "the same steps in torch; the codes' norms are not timed",
    _torch,
    matrices=2,
)

RESIDUAL_PEERS = (
    OURS,
    ResidualPeer("ours, stage by stage", "each stage: search, gather, subtract", _stages),
    KEPT_NORMS,
    ResidualPeer(
        "vector-quantize-pytorch",
        "ResidualVQ in its defaults, eval() and no_grad()",
        _vqp,
        needs("vector_quantize_pytorch", "vector-quantize-pytorch"),
        matrices=2,
    ),
)

# Codebooks that do not change, so that each contender may prepare them beforehand.
FROZEN_RESIDUAL_PEERS = (PACKED, OURS, KEPT_NORMS)
# Ours is first, because all ratios are taken against it.
GPU_RESIDUAL_PEERS = (OURS, PACKED, *RESIDUAL_PEERS[1:])
