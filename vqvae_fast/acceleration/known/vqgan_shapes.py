"""Quantizers by the shape of VQGAN's and of what came before and after it.

These classes are copied from repository to repository: the one of the first VQ-VAE in PyTorch,
taming-transformers' two, which latent diffusion has, too, and SimVQ's.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nn_functional

from vqvae_fast.acceleration.known.embedding_tables import (
    Codes,
    has_no_hooks,
    on_images,
    rows_of,
    search_on_images,
    sizes_of_table,
)
from vqvae_fast.acceleration.known.shapes import has_table, images_near
from vqvae_fast.acceleration.known.vqgan_tables import quantize_images, searched_images
from vqvae_fast.acceleration.recipe import Recipe, Search
from vqvae_fast.autocast import is_autocast


def _is_first(module: nn.Module) -> bool:
    """Without the options that came later."""
    return has_table(module) and not any(
        hasattr(module, name) for name in ("legacy", "remap", "entropy_loss_ratio")
    )


def _is_second(module: nn.Module) -> bool:
    later = ("legacy", "remap", "sane_index_shape")
    return has_table(module, *later) and "embedding_proj" not in module._modules


def _is_simvq(module: nn.Module) -> bool:
    return (
        has_table(module, "legacy", "remap", "sane_index_shape")
        and isinstance(module._modules.get("embedding_proj"), nn.Linear)
        and hasattr(inspect.unwrap(type(module).forward), "__globals__")
    )


def _with_one_hot(module: Any, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """[B, D, height, width] -> quantized, loss, perplexity, one-hot vectors [N, K], indices [N, 1].

    One-hot vectors are a result of the first quantizer, so they are made here, too.
    """
    codes = _multiplied(module.embedding, z.device.type)
    found = on_images(module, z, codes, commitment_weight=1.0, codebook_weight=module.beta)
    indices = found.indices.unsqueeze(1)
    one_hot = torch.zeros(len(indices), module.n_e, dtype=z.dtype, device=z.device)
    one_hot.scatter_(1, indices, 1)
    usage = one_hot.mean(dim=0)
    perplexity = torch.exp(-torch.sum(usage * torch.log(usage + 1e-10)))
    return found.quantized, found.loss, perplexity, one_hot, indices


def _multiplied(table: nn.Embedding, device: str) -> Codes:
    """The rows as products of one-hot vectors and the weight, for which the table is not called."""
    weight = table.weight
    dtype = torch.get_autocast_dtype(device) if is_autocast(device) else weight.dtype
    return Codes(
        (weight,),
        lambda: weight,
        lambda indices: nn_functional.embedding(indices, weight).to(dtype),
    )


def _first(original: Callable[..., Any], module: Any, z: Tensor) -> Any:
    """taming-transformers' VectorQuantizer.forward."""
    quantized, loss, *rest = _with_one_hot(module, z)
    return quantized, loss, tuple(rest)


def _first_of_all(original: Callable[..., Any], module: Any, z: Tensor) -> Any:
    """The forward of the VQ-VAE that VQGAN's comes from."""
    quantized, loss, *rest = _with_one_hot(module, z)
    return loss, quantized, *rest


def _second(
    original: Callable[..., Any], module: Any, z: Tensor, *options: Any, **others: Any
) -> Any:
    """taming-transformers' and latent diffusion's VectorQuantizer2.forward."""
    if options or others:  # of the Gumbel quantizer's interface: it checks that they do nothing
        return original(module, z, *options, **others)
    quantized, loss, indices = quantize_images(module, z, rows_of(module.embedding))
    return quantized, loss, (None, None, indices)


def _simvq(
    original: Callable[..., Any], module: Any, z: Tensor, *options: Any, **others: Any
) -> Any:
    """SimVQ's forward: the codes are a linear layer's outputs for a table that stays."""
    if options or others:
        return original(module, z, *options, **others)
    quantized, loss, indices = quantize_images(module, z, _projected(module, z))
    zero = torch.tensor(0.0)
    breakdown = inspect.unwrap(original).__globals__["LossBreakdown"]
    return (quantized, zero, indices), breakdown(
        torch.tensor(0.0), torch.tensor(0.0), loss, torch.tensor(0.0)
    )


def _projected(module: Any, z: Tensor) -> Codes:
    """The codes of SimVQ."""
    table, project = module.embedding.weight, module.embedding_proj
    device = z.device.type
    # Autocast and hooks may give other codes in the next call.
    is_certain = type(project) is nn.Linear and has_no_hooks(project)
    if module.training or not is_certain or is_autocast(device):
        codes: Tensor = project(table)
        return Codes((codes,), lambda: codes, lambda found: nn_functional.embedding(found, codes))

    def make() -> Tensor:
        made: Tensor = project(table)
        return made

    sources = (table, project.weight, *([] if project.bias is None else [project.bias]))
    return Codes(sources, make, lambda found: nn_functional.embedding(found, make()))


def _searched_first(module: Any, result: Any, z: Tensor) -> Search:
    return search_on_images(z, module.embedding.weight, result[2][2])


def _searched_first_of_all(module: Any, result: Any, z: Tensor) -> Search:
    return search_on_images(z, module.embedding.weight, result[4])


def _searched_second(module: Any, result: Any, z: Tensor, *_: Any, **__: Any) -> Search | None:
    return searched_images(module, z, module.embedding.weight, result[2][2])


def _searched_simvq(module: Any, result: Any, z: Tensor, *_: Any, **__: Any) -> Search | None:
    codebook = module.embedding_proj(module.embedding.weight)
    return searched_images(module, z, codebook, result[0][2])


def _shape(
    known: Callable[[nn.Module], bool],
    forward: Callable[..., Any],
    searched: Callable[..., Search | None],
    codes: Callable[[Any], Tensor] = lambda module: module.embedding.weight,
) -> Recipe:
    return Recipe(
        known,
        {"forward": forward},
        sizes=sizes_of_table,
        observed=("forward", searched),
        example=lambda module: (images_near(codes(module)),),
    )


RECIPES = (
    _shape(_is_first, _first, _searched_first),
    _shape(_is_first, _first_of_all, _searched_first_of_all),
    _shape(_is_second, _second, _searched_second),
    _shape(
        _is_simvq,
        _simvq,
        _searched_simvq,
        lambda module: module.embedding_proj(module.embedding.weight),
    ),
)
