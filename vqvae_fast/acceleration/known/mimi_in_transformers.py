"""Mimi in Hugging Face's transformers, which its CSM and Moshi use, too."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vqvae_fast.acceleration.kept import nearest_made
from vqvae_fast.acceleration.known.residual_stages import encode_stages
from vqvae_fast.acceleration.recipe import Recipe, Search

_PLACE = "transformers.models.mimi.modeling_mimi."


def _quantize(original: Callable[..., Any], codebook: Any, hidden_states: Tensor) -> Tensor:
    """MimiEuclideanCodebook.quantize: [N, D] -> [N], in float32."""
    codes = codebook.embed
    return nearest_made(codebook, hidden_states.float(), [codes], codes.float)


def _searched(codebook: Any, indices: Tensor, hidden_states: Tensor) -> Search:
    return Search(hidden_states.float(), codebook.embed.float(), indices)


def _encode(
    original: Callable[..., Any],
    quantizer: Any,
    embeddings: Tensor,
    num_quantizers: int | None = None,
) -> Tensor:
    """MimiResidualVectorQuantizer.encode: [B, C, T] -> [Q, B, T]."""
    project = quantizer.input_proj
    vectors = embeddings if project is None else project(embeddings)
    number = quantizer.num_quantizers if num_quantizers is None else num_quantizers
    stages = quantizer.layers
    codebooks = [stage.codebook for stage in stages]
    books = [codebook.embed for codebook in codebooks]
    kind = "MimiVectorQuantization"
    codes = encode_stages(quantizer, vectors, stages, codebooks, books, number, kind)
    return original(quantizer, embeddings, num_quantizers) if codes is None else codes


def _sizes(codebook: Any) -> str:
    return f"K={codebook.embed.shape[0]}, D={codebook.embed.shape[1]}"


RECIPES = (
    Recipe(
        _PLACE + "MimiEuclideanCodebook",
        {"quantize": _quantize},
        relies_on=("embed",),
        sizes=_sizes,
        observed=("quantize", _searched),
    ),
    Recipe(
        _PLACE + "MimiResidualVectorQuantizer",
        {"encode": _encode},
        sizes=lambda quantizer: _sizes(quantizer.layers[0].codebook),
    ),
)
