"""The quantizer of VQModel in Hugging Face's diffusers."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vqvae_fast.acceleration.known.embedding_tables import rows_of, sizes_of_table
from vqvae_fast.acceleration.known.vqgan_tables import quantize_images, searched_images
from vqvae_fast.acceleration.recipe import Recipe, Search


def _quantize(original: Callable[..., Any], module: Any, z: Tensor) -> Any:
    """VectorQuantizer.forward: [B, D, height, width] -> quantized, loss, (None, None, indices)."""
    quantized, loss, indices = quantize_images(module, z, rows_of(module.embedding))
    return quantized, loss, (None, None, indices)


def _searched(module: Any, result: Any, z: Tensor) -> Search | None:
    return searched_images(module, z, module.embedding.weight, result[2][2])


RECIPES = (
    Recipe(
        "diffusers.models.autoencoders.vae.VectorQuantizer",
        {"forward": _quantize},
        sizes=sizes_of_table,
        observed=("forward", _searched),
    ),
)
