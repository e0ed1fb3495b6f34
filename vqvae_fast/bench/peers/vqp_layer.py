"""vector-quantize-pytorch's VectorQuantize, as a user gets it and without its rotation trick."""

from typing import Any

import torch
from torch import Tensor

from vqvae_fast.bench.peers.base import (
    LayerPeer,
    Search,
    Step,
    inference,
    needs,
    training_step,
)


def _layer(codebook: Tensor, **options: Any) -> Any:
    from vector_quantize_pytorch import VectorQuantize

    num_codes, dim = codebook.shape
    layer = VectorQuantize(
        dim, num_codes, accept_image_fmap=True, commitment_weight=0.25, decay=0.99, **options
    ).to(codebook.device)
    state = layer._codebook
    with torch.no_grad():
        state.embed.copy_(codebook[None])
        state.embed_avg.copy_(codebook[None])
        state.cluster_size.fill_(1.0)
    return layer


def _build(fmap: Tensor, codebook: Tensor, **options: Any) -> Step:
    layer = _layer(codebook, **options).train()

    def forward(z: Tensor) -> tuple[Tensor, Tensor]:
        quantized, _, loss = layer(z)
        layer.zero_grad(set_to_none=True)
        return quantized, loss

    return training_step(forward, fmap)


def _infer(fmap: Tensor, codebook: Tensor, **options: Any) -> Search:
    layer = _layer(codebook, **options).eval()
    return inference(lambda z: layer(z)[0], fmap)


def _peer(name: str, timed: str, learning: str, **options: Any) -> LayerPeer:
    return LayerPeer(
        f"vector-quantize-pytorch ({name})",
        timed,
        lambda fmap, codebook: _build(fmap, codebook, **options),
        lambda fmap, codebook: _infer(fmap, codebook, **options),
        learning,
        needs("vector_quantize_pytorch", "vector-quantize-pytorch"),
        matrices=6,
    )


PEERS = (
    _peer("EMA", "VectorQuantize in its defaults: EMA codebook, rotation trick", "ema"),
    _peer(
        "EMA, straight-through",
        "VectorQuantize(rotation_trick=False): the same gradient as ours",
        "ema",
        rotation_trick=False,
    ),
    _peer(
        "gradient",
        "VectorQuantize(learnable_codebook=True, ema_update=False, rotation_trick=False)",
        "gradient",
        rotation_trick=False,
        learnable_codebook=True,
        ema_update=False,
    ),
)
