"""The VQ-VAEs of the language models in Hugging Face's transformers that read and write images."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as nn_functional

from vqvae_fast.acceleration.kept import check_dimensions, nearest
from vqvae_fast.acceleration.known.embedding_tables import (
    Found,
    directions_of,
    on_images,
    rows_of,
    search_on_images,
    sizes_of_table,
)
from vqvae_fast.acceleration.recipe import Recipe, Search


def _quantize(original: Callable[..., Any], module: Any, hidden_state: Tensor) -> Any:
    """[B, D, height, width] -> the same quantized, the loss, indices [B * height * width]."""
    # beta weighs the codebook's term, unlike in the article.
    found = on_images(
        module,
        hidden_state,
        rows_of(module.embedding),
        commitment_weight=1.0,
        codebook_weight=module.beta,
    )
    return found.quantized, found.loss, found.indices


def _quantize_directions(original: Callable[..., Any], module: Any, hidden_state: Tensor) -> Any:
    """As _quantize, for vectors and codes of unit length."""
    check_dimensions(hidden_state, 4)
    found: Found = on_images(
        module,
        nn_functional.normalize(hidden_state, p=2, dim=1),
        directions_of(module.embedding),
        commitment_weight=1.0,
        codebook_weight=module.beta,
    )
    return found.quantized, found.loss, found.indices


def _find_in_videos(original: Callable[..., Any], module: Any, hidden_state: Tensor) -> Tensor:
    """[B, time, D, height, width] -> indices [B, time, height, width]."""
    check_dimensions(hidden_state, 5)
    return nearest(module, hidden_state.permute(0, 1, 3, 4, 2), module.embedding.weight)


def _searched(module: Any, result: Any, hidden_state: Tensor) -> Search:
    return search_on_images(hidden_state, module.embedding.weight, result[2])


def _searched_directions(module: Any, result: Any, hidden_state: Tensor) -> Search:
    z = nn_functional.normalize(hidden_state, p=2, dim=1)
    return search_on_images(z, directions_of(module.embedding).make(), result[2])


def _searched_videos(module: Any, result: Any, hidden_state: Tensor) -> Search:
    frames = hidden_state.flatten(0, 1)
    return search_on_images(frames, module.embedding.weight, result)


def _quantizer(name: str, forward: Callable[..., Any], searched: Callable[..., Search]) -> Recipe:
    return Recipe(
        f"transformers.models.{name}VQVAEVectorQuantizer",
        {"forward": forward},
        sizes=sizes_of_table,
        observed=("forward", searched),
    )


RECIPES = (
    _quantizer("chameleon.modeling_chameleon.Chameleon", _quantize, _searched),
    _quantizer("janus.modeling_janus.Janus", _quantize, _searched),
    _quantizer("glm_image.modeling_glm_image.GlmImage", _quantize_directions, _searched_directions),
    _quantizer("emu3.modeling_emu3.Emu3", _find_in_videos, _searched_videos),
)
