"""Meta's package encodec."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vqvae_fast.acceleration.kept import nearest
from vqvae_fast.acceleration.known.residual_stages import encode_stages
from vqvae_fast.acceleration.recipe import Recipe, Search
from vqvae_fast.autocast import is_autocast
from vqvae_fast.functional import segment_sum

_PLACE = "encodec.quantization.core_vq."


def _quantize(original: Callable[..., Any], codebook: Any, x: Tensor) -> Tensor:
    """EuclideanCodebook.quantize: [N, D] -> [N]."""
    return nearest(codebook, x, codebook.embed)


def _forward(original: Callable[..., Any], codebook: Any, x: Tensor) -> Any:
    """EuclideanCodebook.forward: [..., D] -> [..., D], [...], without one-hot vectors [N, K].

    The order is that of the original, which draws random numbers for codes that expire.
    """
    if codebook.training and (x.dtype != codebook.embed.dtype or _is_narrow(x)):
        return original(codebook, x)  # it chooses the dtype of the sums
    shape = x.shape
    x = codebook.preprocess(x)
    codebook.init_embed_(x)
    found = codebook.quantize(x)
    indices = codebook.postprocess_emb(found, shape)
    quantized = codebook.dequantize(indices)
    if codebook.training:
        codebook.expire_codes_(x)
        _average_in(codebook, x, found)
    return quantized, indices


@torch.no_grad()
def _average_in(codebook: Any, x: Tensor, indices: Tensor) -> None:
    """Average a batch in, as the original's forward does."""
    number = codebook.codebook_size
    sums, counts = segment_sum(x, indices, number)
    codebook.cluster_size.data.mul_(codebook.decay).add_(counts, alpha=1 - codebook.decay)
    codebook.embed_avg.data.mul_(codebook.decay).add_(sums, alpha=1 - codebook.decay)
    total = codebook.cluster_size.sum()
    smoothed = (codebook.cluster_size + codebook.epsilon) / (total + number * codebook.epsilon)
    codebook.embed.data.copy_(codebook.embed_avg / (smoothed * total).unsqueeze(1))


def _is_narrow(x: Tensor) -> bool:
    """Whether the original computes the sums in 16 bits."""
    return x.dtype not in (torch.float32, torch.float64) or is_autocast(x.device.type)


def _encode(
    original: Callable[..., Any], quantizer: Any, x: Tensor, n_q: int | None = None
) -> Tensor:
    """ResidualVectorQuantization.encode: [B, D, T] -> [Q, B, T]."""
    stages = quantizer.layers
    codes = None
    if all(isinstance(stage.project_in, nn.Identity) for stage in stages):
        codebooks = [stage._codebook for stage in stages]
        books = [codebook.embed for codebook in codebooks]
        number = n_q or len(stages)
        codes = encode_stages(quantizer, x, stages, codebooks, books, number, "VectorQuantization")
    return original(quantizer, x, n_q) if codes is None else codes


def _searched(codebook: Any, indices: Tensor, x: Tensor) -> Search:
    return Search(x, codebook.embed, indices)


def _sizes(codebook: Any) -> str:
    return f"K={codebook.embed.shape[0]}, D={codebook.embed.shape[1]}"


RECIPES = (
    Recipe(
        _PLACE + "EuclideanCodebook",
        {"quantize": _quantize, "forward": _forward},
        sizes=_sizes,
        observed=("quantize", _searched),
    ),
    Recipe(
        _PLACE + "ResidualVectorQuantization",
        {"encode": _encode},
        sizes=lambda quantizer: _sizes(quantizer.layers[0]._codebook),
    ),
)
