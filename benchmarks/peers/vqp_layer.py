"""vector-quantize-pytorch's VectorQuantize, as a user gets it and without its rotation trick."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.base import LayerPeer, Step, needs, training_step

_unavailable = needs("vector_quantize_pytorch", "vector-quantize-pytorch")


def _build(fmap: Tensor, codebook: Tensor, **options: Any) -> Step:
    from vector_quantize_pytorch import VectorQuantize

    num_codes, dim = codebook.shape
    layer: Any = VectorQuantize(
        dim, num_codes, accept_image_fmap=True, commitment_weight=0.25, decay=0.99, **options
    )
    layer.to(fmap.device).train()
    state = layer._codebook
    with torch.no_grad():
        state.embed.copy_(codebook[None])
        state.embed_avg.copy_(codebook[None])
        state.cluster_size.fill_(1.0)

    def forward(z: Tensor) -> tuple[Tensor, Tensor]:
        quantized, _, loss = layer(z)
        layer.zero_grad(set_to_none=True)
        return quantized, loss

    return training_step(forward, fmap)


PEERS = (
    LayerPeer(
        "vector-quantize-pytorch (EMA)",
        "VectorQuantize in its defaults: EMA codebook, rotation trick",
        lambda fmap, codebook: _build(fmap, codebook),
        "ema",
        _unavailable,
    ),
    LayerPeer(
        "vector-quantize-pytorch (EMA, straight-through)",
        "VectorQuantize(rotation_trick=False): the same gradient as ours",
        lambda fmap, codebook: _build(fmap, codebook, rotation_trick=False),
        "ema",
        _unavailable,
    ),
    LayerPeer(
        "vector-quantize-pytorch (gradient)",
        "VectorQuantize(learnable_codebook=True, ema_update=False, rotation_trick=False)",
        lambda fmap, codebook: _build(
            fmap, codebook, rotation_trick=False, learnable_codebook=True, ema_update=False
        ),
        "gradient",
        _unavailable,
    ),
)
