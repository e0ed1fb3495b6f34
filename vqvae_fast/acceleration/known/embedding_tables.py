"""Quantizers whose codes are the rows of an nn.Embedding, or are made of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as nn_functional
from torch.nn.modules.module import _has_any_global_hook

from vqvae_fast.acceleration.kept import check_dimensions, nearest_made, quantize_made
from vqvae_fast.acceleration.recipe import Search


@dataclass(frozen=True)
class Codes:
    """The codes of a quantizer.

    Attributes:
        sources: the tensors that they are made of, the same objects in each call.
        make: makes them, [K, D], with their gradient.
        look_up: takes those of some indices, with their gradient.
        are_plain: whether ``look_up`` does no more than that, so that it can be passed by.
    """

    sources: tuple[Tensor, ...]
    make: Callable[[], Tensor]
    look_up: Callable[[Tensor], Tensor]
    are_plain: bool = True


class Found(NamedTuple):
    """What a quantizer returns, up to its layout.

    Attributes:
        quantized: [..., D], the value and the gradient of z + (q - z).detach().
        indices: [...].
        loss: commitment * mean((sg[q] - z)^2) + codebook * mean((q - sg[z])^2).
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor


def rows_of(table: nn.Embedding) -> Codes:
    """The codes are the rows."""
    weight = table.weight
    return Codes((weight,), lambda: weight, table, _only_looks_up(table))


def directions_of(table: nn.Embedding) -> Codes:
    """The codes are the rows, scaled to unit length."""
    weight = table.weight

    def make() -> Tensor:
        return nn_functional.normalize(weight, p=2, dim=-1)

    return Codes((weight,), make, lambda indices: nn_functional.normalize(weight[indices], dim=-1))


def straight_through(
    module: nn.Module,
    z: Tensor,
    codes: Codes,
    *,
    commitment_weight: float,
    codebook_weight: float,
) -> Found:
    """Quantize z [..., D] with a straight-through gradient and the losses of VQ.

    In float32 and float64 the search, the losses and their gradients are fused. Otherwise they are
    computed in the dtypes in which the formulas of :class:`Found` compute them.
    """
    if codes.are_plain and _are_wide(z, *codes.sources) and z.numel():
        found = quantize_made(
            module,
            z,
            codes.sources,
            codes.make,
            commitment_weight=commitment_weight,
            codebook_weight=codebook_weight,
        )
        # As in z + (q - z), a NaN or an infinity of z stays one.
        quantized = torch.add(found.quantized, z.detach(), alpha=0)
        return Found(quantized, found.indices, found.loss)
    indices = nearest_made(module, z, codes.sources, codes.make)
    quantized, commitment, codebook = losses(z, codes.look_up(indices))
    return Found(quantized, indices, commitment_weight * commitment + codebook_weight * codebook)


def losses(z: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the quantized vectors, the commitment loss and the codebook loss, by the formulas."""
    commitment = torch.mean((chosen.detach() - z) ** 2)
    codebook = torch.mean((chosen - z.detach()) ** 2)
    return z + (chosen - z).detach(), commitment, codebook


def on_images(
    module: nn.Module,
    z: Tensor,
    codes: Codes,
    *,
    commitment_weight: float,
    codebook_weight: float,
) -> Found:
    """As :func:`straight_through`, for z [B, D, height, width] and indices [B * height * width]."""
    check_dimensions(z, 4)
    found = straight_through(
        module,
        z.permute(0, 2, 3, 1),
        codes,
        commitment_weight=commitment_weight,
        codebook_weight=codebook_weight,
    )
    quantized = found.quantized.permute(0, 3, 1, 2).contiguous()
    return Found(quantized, found.indices.reshape(-1), found.loss)


def search_on_images(z: Tensor, codebook: Tensor, indices: Tensor) -> Search:
    """The :class:`Search` for z [B, D, height, width]."""
    return Search(z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]), codebook, indices.reshape(-1))


def sizes_of_table(module: Any) -> str:
    """The report's sizes, for a module whose table is called ``embedding``."""
    return f"K={module.embedding.weight.shape[0]}, D={module.embedding.weight.shape[1]}"


def _are_wide(*tensors: Tensor) -> bool:
    """Whether all are float32, or all float64."""
    dtypes = {tensor.dtype for tensor in tensors}
    return dtypes in ({torch.float32}, {torch.float64})


def _only_looks_up(table: nn.Module) -> bool:
    """Whether a table's forward, which may be passed by, does no more than a lookup."""
    return (
        type(table) is nn.Embedding
        and table.max_norm is None
        and table.padding_idx is None
        and not (table.scale_grad_by_freq or table.sparse)
        and has_no_hooks(table)
    )


def has_no_hooks(module: nn.Module) -> bool:
    """Whether no hook, of the module or of all modules, misses a forward that is passed by."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return "forward" not in vars(module) and not any(hooks) and not _has_any_global_hook()
