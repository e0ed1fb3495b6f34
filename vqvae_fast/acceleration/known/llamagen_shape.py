"""LlamaGen's quantizer, by its shape."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nn_functional

from vqvae_fast.acceleration.kept import check_dimensions, nearest_made
from vqvae_fast.acceleration.known.embedding_tables import (
    Codes,
    directions_of,
    losses,
    rows_of,
    search_on_images,
    sizes_of_table,
)
from vqvae_fast.acceleration.known.shapes import has_table, images_near
from vqvae_fast.acceleration.recipe import Recipe, Search


def _is_llamagen(module: nn.Module) -> bool:
    return has_table(module, "entropy_loss_ratio", "l2_norm", "show_usage")


def _has_entropy_loss(module: Any) -> bool:
    """Whether the loss that needs all distances has a weight."""
    return bool(module.entropy_loss_ratio)


def _forward(original: Callable[..., Any], module: Any, z: Tensor) -> Any:
    """[B, D, height, width] -> quantized, losses and usage, (None, None, indices)."""
    if module.training and _has_entropy_loss(module):
        return original(module, z)
    check_dimensions(z, 4)
    z, codes = _compared(module, z)
    if not module.training:
        indices = nearest_made(module, z, codes.sources, codes.make)
        quantized = z + (codes.look_up(indices) - z).detach()
        return (
            quantized.permute(0, 3, 1, 2),
            (None, None, None, 0),
            (None, None, indices.reshape(-1)),
        )
    codebook = codes.make()
    indices = nearest_made(module, z, [codebook], lambda: codebook)
    # The losses are returned one by one, each with its gradient.
    quantized, commitment, learning = losses(z, nn_functional.embedding(indices, codebook))
    indices = indices.reshape(-1)
    usage = _note_usage(module, indices) if module.show_usage else 0
    entropy = 0.0 * (z.mean() + codebook.mean())
    return (
        quantized.permute(0, 3, 1, 2),
        (learning, module.beta * commitment, entropy, usage),
        (None, None, indices),
    )


def _compared(module: Any, z: Tensor) -> tuple[Tensor, Codes]:
    """The vectors [B, height, width, D], and the codes that they are compared with."""
    z = z.permute(0, 2, 3, 1).contiguous()  # the result has its strides
    if module.l2_norm:
        return nn_functional.normalize(z, p=2, dim=-1), directions_of(module.embedding)
    weight = module.embedding.weight
    codes = rows_of(module.embedding)
    return z, Codes(codes.sources, codes.make, lambda indices: weight[indices])


def _note_usage(module: Any, indices: Tensor) -> float:
    """Write the indices into the window of the last ones; the share of codes that is in it."""
    number = len(indices)
    module.codebook_used[:-number] = module.codebook_used[number:].clone()
    module.codebook_used[-number:] = indices
    return len(torch.unique(module.codebook_used)) / int(module.n_e)


def _searched(module: Any, result: Any, z: Tensor) -> Search:
    vectors, codes = _compared(module, z)
    return search_on_images(vectors.permute(0, 3, 1, 2), codes.make(), result[2][2])


def _sizes(module: Any) -> str:
    if _has_entropy_loss(module):
        return (
            f"{sizes_of_table(module)}, in eval; in training its entropy loss needs all distances"
        )
    return sizes_of_table(module)


RECIPES = (
    Recipe(
        _is_llamagen,
        {"forward": _forward},
        sizes=_sizes,
        observed=("forward", _searched),
        example=lambda module: (images_near(module.embedding.weight),),
    ),
)
