"""The quantizer of VQ-VAE-2 in PyTorch, whose codes are moving averages, by its shape."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vqvae_fast.acceleration.known.embedding_tables import Codes, straight_through
from vqvae_fast.acceleration.known.shapes import images_near
from vqvae_fast.acceleration.recipe import Recipe, Search
from vqvae_fast.autocast import is_autocast
from vqvae_fast.distributed import is_distributed
from vqvae_fast.functional import segment_sum


def _is_quantize(module: nn.Module) -> bool:
    """The codes are the columns of a buffer."""
    buffers = dict(module.named_buffers(recurse=False))
    return (
        buffers.keys() == {"embed", "cluster_size", "embed_avg"}
        and all(hasattr(module, name) for name in ("dim", "n_embed", "decay", "eps", "embed_code"))
        and [*buffers["embed"].shape]
        == [*buffers["embed_avg"].shape]
        == [module.dim, module.n_embed]
    )


def _forward(original: Callable[..., Any], module: Any, input: Tensor) -> Any:
    """[..., D] -> quantized [..., D], the commitment loss, indices [...]."""
    if module.training and (is_distributed() or not _averages_wide(module, input)):
        # Whether the class adds the sums of all processes up cannot be seen.
        return original(module, input)
    embed = module.embed
    codes = Codes((embed,), embed.t, module.embed_code)
    found = straight_through(module, input, codes, commitment_weight=1.0, codebook_weight=0.0)
    if module.training:
        _average_in(module, input.reshape(-1, module.dim), found.indices.reshape(-1))
    return found.quantized, found.loss, found.indices


def _averages_wide(module: Any, input: Tensor) -> bool:
    """Whether the class computes the sums in the buffers' dtype, float32 or float64."""
    device = input.device.type
    return (
        input.dtype == module.embed.dtype
        and input.dtype in (torch.float32, torch.float64)
        and not is_autocast(device)
    )


@torch.no_grad()
def _average_in(module: Any, rows: Tensor, indices: Tensor) -> None:
    """Average a batch in, as the original's forward does."""
    sums, counts = segment_sum(rows, indices, module.n_embed)
    module.cluster_size.data.mul_(module.decay).add_(counts, alpha=1 - module.decay)
    module.embed_avg.data.mul_(module.decay).add_(sums.t(), alpha=1 - module.decay)
    total = module.cluster_size.sum()
    smoothed = (module.cluster_size + module.eps) / (total + module.n_embed * module.eps)
    module.embed.data.copy_(module.embed_avg / (smoothed * total).unsqueeze(0))


def _searched(module: Any, result: Any, input: Tensor) -> Search:
    return Search(input.reshape(-1, module.dim), module.embed.t(), result[2].reshape(-1))


RECIPES = (
    Recipe(
        _is_quantize,
        {"forward": _forward},
        sizes=lambda module: f"K={module.n_embed}, D={module.dim}",
        observed=("forward", _searched),
        example=lambda module: (images_near(module.embed.t()).permute(0, 2, 3, 1),),
    ),
)
