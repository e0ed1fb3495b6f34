"""Eval of vector-quantize-pytorch's ResidualVQ whose stages do no more than find nearest codes."""

from typing import Any

import torch
from torch import Tensor

from vqvae_fast import functional
from vqvae_fast.acceleration.kept import check_served, packed_books, times_forgotten
from vqvae_fast.acceleration.replaced import is_replaced
from vqvae_fast.autocast import is_autocast
from vqvae_fast.nn.drop_in.plain_stage import is_watched


def only_searches(quantizer: Any, x: Tensor) -> bool:
    """Whether all stages of a ResidualVQ find the nearest stored codes to x, and nothing learns."""
    return (
        not quantizer.training
        and quantizer.uniform_codebook_size
        and not quantizer.implicit_neural_codebook
        and not quantizer.diveq  # it adds noise in eval, too
        and not quantizer.accept_image_fmap
        and x.dim() in (2, 3)
        and not is_autocast(x.device.type)
        and all(_only_searches(stage, x) for stage in quantizer.layers)
        and all(p.dtype == torch.float32 for p in quantizer.project_in.parameters())
    )


def _only_searches(stage: Any, x: Tensor) -> bool:
    codebook = stage._codebook
    embed = codebook.embed
    return (
        not stage.training
        and not codebook.training
        and _calls_may_be_left_out(stage)
        and _calls_may_be_left_out(codebook)
        and stage.heads == 1
        and stage.channel_last
        and not stage.accept_3d_fmap
        and not stage.has_projections
        and not codebook.use_cosine_sim
        and not codebook.affine_param
        and codebook.vq_bridge is None
        and x.dtype == embed.dtype == torch.float32
        and x.device == embed.device
        and not (embed.requires_grad and torch.is_grad_enabled())
        and bool(codebook.initted)
    )


def _calls_may_be_left_out(part: Any) -> bool:
    return is_replaced(part, "forward") and not is_watched(part, type(part))


def search(quantizer: Any, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes of vectors [..., d] in all stages, [..., Q], and the sum of these codes."""
    codebooks = [stage._codebook for stage in quantizer.layers]
    books = [codebook.embed for codebook in codebooks]
    check_served(vectors, books[0])
    forgotten = [times_forgotten(codebook) for codebook in codebooks]
    packed = packed_books(quantizer, books, lambda: torch.cat(books), forgotten)
    indices, total = functional.residual_nearest_code(
        vectors.detach(), torch.cat(books) if packed is None else packed
    )
    return indices, total
