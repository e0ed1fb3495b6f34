"""The SimVQ of vector-quantize-pytorch, which its ResidualSimVQ calls for each stage."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vqvae_fast import functional
from vqvae_fast.acceleration.kept import check_served, packed_books
from vqvae_fast.acceleration.known.rotation_of_vqp import as_vectors_without_direction_get
from vqvae_fast.acceleration.recipe import Recipe, Search
from vqvae_fast.autocast import is_autocast
from vqvae_fast.autograd.estimators import rotate_to
from vqvae_fast.nn.codebook.kept_pack import tensors_of
from vqvae_fast.nn.drop_in.plain_stage import is_watched
from vqvae_fast.nn.steps.layout import to_places, to_tokens, vectors_to_places
from vqvae_fast.packed import PackedCodebook


def _forward(original: Callable[..., Any], quantizer: Any, x: Tensor) -> Any:
    """SimVQ.forward: [B, ..., D], or [B, D, ...] -> quantized, indices, loss."""
    same = x.dtype == quantizer.frozen_codebook.dtype in (torch.float32, torch.float64)
    if not same or x.dim() < 2 or is_autocast(x.device.type):
        return original(quantizer, x)
    tokens, places = to_tokens(x, quantizer.channel_first)
    packed = _packed(quantizer)
    codes = quantizer.codebook if packed is None else packed.codebook
    check_served(tokens, codes)
    quantized, indices, loss, _ = functional.quantize(
        tokens,
        codes if packed is None else packed,
        commitment_weight=quantizer.input_to_quantize_commit_loss_weight,
        codebook_weight=1.0,
    )
    if quantizer.rotation_trick:
        quantized = rotate_to(tokens, quantized.detach())
    quantized = as_vectors_without_direction_get(
        tokens.detach(), codes, quantized, indices, rotates=quantizer.rotation_trick
    )
    return (
        vectors_to_places(quantized, places),
        to_places(indices, places),
        loss * quantizer.commitment_weight,
    )


def _packed(quantizer: Any) -> PackedCodebook | None:
    """The codes packed; None where the module that makes them must be called."""
    if torch.compiler.is_compiling():
        return None
    parts = tuple(quantizer.code_transform.modules())
    if any(part.training or is_watched(part, type(part)) for part in parts):
        return None
    sources = [quantizer.frozen_codebook, *tensors_of(parts)]
    return packed_books(quantizer, sources, lambda: quantizer.codebook, parts)


def _searched(quantizer: Any, result: tuple[Tensor, Tensor, Tensor], x: Tensor) -> Search:
    tokens, _ = to_tokens(x, quantizer.channel_first)
    return Search(tokens.flatten(0, 1), quantizer.codebook, result[1].flatten())


def _sizes(quantizer: Any) -> str:
    size, dim = quantizer.frozen_codebook.shape
    return f"K={size}, D={dim} of the frozen codes"


RECIPE = Recipe(
    "vector_quantize_pytorch.sim_vq.SimVQ",
    {"forward": _forward},
    relies_on=("codebook",),
    sizes=_sizes,
    observed=("forward", _searched),
)
