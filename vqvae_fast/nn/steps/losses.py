"""The losses of a quantizer: commitment, cross-entropy, diversity, orthogonality."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vqvae_fast.autograd.gather import copy_of_codes
from vqvae_fast.nn.codebook.metrics import code_counts
from vqvae_fast.nn.steps import logits
from vqvae_fast.nn.steps.choosing import Chosen
from vqvae_fast.nn.steps.regularisers import masked_mean, orthogonal_loss


class LossBreakdown(NamedTuple):
    """The parts of the loss, before their weights."""

    commitment: Tensor
    codebook_diversity: Tensor
    orthogonal_reg: Tensor
    inplace_optimize: Tensor


# A Commitment computes the loss between vectors and codes from rows [C, ..., d], the codes that
# they chose, and the rows that count: bool [C, ...], or None for all.
Commitment = Callable[[Tensor, Chosen, Tensor | None], Tensor]


def commitment_loss(rows: Tensor, chosen: Chosen, counted: Tensor | None) -> Tensor:
    """Return mean((z - q)^2), the distance of the codes from the vectors; 0-d."""
    return masked_mean((chosen.quantized - rows).square(), counted)


def commitment_of_each(rows: Tensor, chosen: Chosen, counted: Tensor | None) -> Tensor:
    """Return the loss of each of k codes separately, [B, N, k], 0 where masked; C must be 1."""
    errors = (chosen.quantized - rows[..., None, :]).square().mean(dim=-1)[0]
    return errors if counted is None else errors * counted[0, ..., None]


def no_commitment(rows: Tensor, chosen: Chosen, counted: Tensor | None) -> Tensor:
    """Return 0, for quantizers without this loss."""
    return rows.new_zeros(())


def cross_entropy_loss(
    rows: Tensor, chosen: Chosen, counted: Tensor | None, *, unit_length: bool
) -> Tensor:
    """Return -log softmax(-distances)[code], which replaces the commitment loss; 0-d."""
    if counted is None:  # a copy, because the caller may write to the indices
        targets = torch.ops.vqvae_fast.copy_of_codes(chosen.indices)
    else:
        targets = torch.where(counted, chosen.indices, -1)
    return logits.cross_entropy(rows, chosen.codes, unit_length, targets)


def orthogonality_loss(
    codes: Tensor,
    indices: Tensor,
    counted: Tensor | None,
    *,
    active_only: bool,
    max_codes: int | None,
) -> Tensor:
    """Return the orthogonality loss of codes [C, K, d], or of those the batch has chosen; 0-d."""
    active = None
    if active_only:
        if counted is not None:
            counted = counted.view(counted.shape + (1,) * (indices.dim() - counted.dim()))
            indices = torch.where(counted, indices, -1)
        active = code_counts(indices, codes.shape[1]) > 0
    # The loss takes a copy, because stages that share the book, or the next call, may write to it
    # before the backward pass.
    return orthogonal_loss(copy_of_codes(codes), active, max_codes)
