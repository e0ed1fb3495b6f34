"""A training step of vector-quantize-pytorch's VectorQuantize in one pass over the vectors.

Search, commitment loss and the gradient of the result are one Function here. The library makes some
twenty tensors as large as the vectors for them, which take longer than the search.
"""

from typing import Any

import torch
from torch import Tensor

from vqvae_fast.acceleration.kept import check_served, forget
from vqvae_fast.acceleration.known import codebook_of_vqp
from vqvae_fast.acceleration.known.rotation_of_vqp import as_vectors_without_direction_get
from vqvae_fast.acceleration.replaced import is_replaced
from vqvae_fast.autocast import is_autocast
from vqvae_fast.autograd.gather import copy_of_codes
from vqvae_fast.autograd.nearest_with_loss import nearest_with_loss
from vqvae_fast.nn.drop_in.plain_stage import is_watched
from vqvae_fast.nn.steps.layout import to_places, to_tokens, vectors_to_places


def train(
    quantizer: Any, x: Tensor, frozen: bool, **averaging: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what ``forward`` returns in training, where :func:`is_plain` says that it is plain.

    Args:
        quantizer: a VectorQuantize.
        x: as ``forward`` takes it.
        frozen: nothing is learned.
        averaging: what ``forward`` was told about the averages.
    """
    codebook = quantizer._codebook
    forget(codebook)
    tokens, places = to_tokens(x, _is_channel_first(quantizer))
    rows = codebook.transform_input(quantizer.project_in(tokens))[None]
    check_served(rows, codebook.embed)
    codes, learns = codebook.embed.detach(), quantizer.learnable_codebook and not frozen
    if learns:
        # Averages and expiry may write to the codes before the backward pass.
        codes = copy_of_codes(codebook.embed)
    quantized, indices, commitment = nearest_with_loss(
        rows, codes, rotates=quantizer.rotation_trick, codes_learn=learns
    )
    quantized = as_vectors_without_direction_get(
        rows.detach(), codes, quantized, indices, rotates=quantizer.rotation_trick
    )
    if not frozen:
        codebook.update_codebook(rows.detach(), indices, **averaging)
    # A product of tensors saves one of them, so a checkpointed step is computed again as far as the
    # library's: the averages move twice.
    weight = torch.full_like(commitment, quantizer.commitment_weight)
    loss = quantizer.zero + commitment * weight
    out = quantizer.project_out(quantized[0])
    return vectors_to_places(out, places), to_places(indices[0], places), loss


def is_plain(quantizer: Any, x: Tensor, temperature: float | None) -> bool:
    """Whether a call without further arguments finds nearest codes for vectors that learn."""
    codebook = quantizer._codebook
    return (
        quantizer.training
        and codebook.training
        and torch.is_grad_enabled()
        and x.requires_grad
        and _has_plain_losses(quantizer)
        and is_replaced(codebook, "forward")
        and not is_watched(codebook, type(codebook))
        and not codebook_of_vqp.draws(codebook, temperature)
        and codebook.vq_bridge is None
        and not codebook.affine_param
        and _is_float32(quantizer, x)
        and x.dim() in _dimensions(quantizer)
        and bool(codebook.initted)
        and (not codebook.use_cosine_sim or _have_directions(quantizer, x))
    )


def _have_directions(quantizer: Any, x: Tensor) -> bool:
    """Whether the nearest codes are the most similar ones: no vector is zero, and no code short."""
    codebook = quantizer._codebook
    if codebook.ema_update and not codebook.has_dead_code_replacement:
        # Unused codes become short in some step, and a checkpointed one is computed again after it.
        return False
    vectors = x.movedim(1, -1) if _is_channel_first(quantizer) and x.dim() > 2 else x
    return bool(vectors.any(dim=-1).all()) and codebook_of_vqp.have_unit_length(codebook.embed)


def _has_plain_losses(quantizer: Any) -> bool:
    return (
        quantizer.heads == 1
        and quantizer.route_gradients_to_input
        and quantizer.has_commitment_loss
        and not quantizer.commitment_use_cross_entropy_loss
        and not quantizer.has_codebook_diversity_loss
        and not quantizer.has_codebook_orthogonal_loss
        and not quantizer.directional_reparam
        and quantizer.sync_update_v <= 0
        and quantizer.in_place_codebook_optimizer is None
    )


def _is_float32(quantizer: Any, x: Tensor) -> bool:
    tensors = [x, quantizer._codebook.embed, *quantizer.project_in.parameters()]
    return not is_autocast(x.device.type) and all(t.dtype == torch.float32 for t in tensors)


def _dimensions(quantizer: Any) -> tuple[int, ...]:
    """How many dimensions x may have."""
    if quantizer.accept_image_fmap:
        return (4,)
    return (5,) if quantizer.accept_3d_fmap else (2, 3)


def _is_channel_first(quantizer: Any) -> bool:
    is_map = quantizer.accept_image_fmap or quantizer.accept_3d_fmap
    return is_map or not quantizer.channel_last
