"""Kyutai's package moshi, with its Mimi."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vqvae_fast.acceleration.kept import nearest
from vqvae_fast.acceleration.known.residual_stages import encode_stages
from vqvae_fast.acceleration.recipe import Recipe, Search

_PLACE = "moshi.quantization.core_vq."


def _quantize(original: Callable[..., Any], codebook: Any, x: Tensor) -> Tensor:
    """EuclideanCodebook._quantize: [N, D] -> [N]."""
    return nearest(codebook, x, codebook.embedding)


def _encode(
    original: Callable[..., Any], quantizer: Any, x: Tensor, n_q: int | None = None
) -> Tensor:
    """ResidualVectorQuantization.encode: [B, C, T] -> [Q, B, T]."""
    # Only these: the property embedding computes the codes of a stage at its first use, for good.
    stages = quantizer.layers[: n_q or len(quantizer.layers)]
    codes = None
    if all(isinstance(stage.project_in, nn.Identity) for stage in stages):
        codebooks = [stage._codebook for stage in stages]
        books = [codebook.embedding for codebook in codebooks]
        number = len(stages)
        codes = encode_stages(quantizer, x, stages, codebooks, books, number, "VectorQuantization")
    return original(quantizer, x, n_q) if codes is None else codes


def _searched(codebook: Any, indices: Tensor, x: Tensor) -> Search:
    return Search(x, codebook.embedding, indices)


RECIPES = (
    Recipe(
        _PLACE + "EuclideanCodebook",
        {"_quantize": _quantize},
        relies_on=("embedding",),
        sizes=lambda codebook: f"K={codebook.codebook_size}, D={codebook.dim}",
        observed=("_quantize", _searched),
    ),
    Recipe(
        _PLACE + "ResidualVectorQuantization",
        {"encode": _encode},
        sizes=lambda quantizer: f"{len(quantizer.layers)} stages",
    ),
)
