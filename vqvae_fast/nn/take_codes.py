"""The codes of indices, with a gradient that is the same in every run."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vqvae_fast.functional import code_statistics
from vqvae_fast.reference import flat_indices


def take_codes(codebook: Tensor, indices: Tensor) -> Tensor:
    """codebook[indices], whose gradient to the codebook is a deterministic segment sum.

    Args:
        codebook: [K, D], or [C, K, D] separate books.
        indices: int64 [...], or [C, ...], in [0, K).

    Returns:
        [..., D], or [C, ..., D].
    """
    codes: Tensor = _TakeCodes.apply(codebook, indices)  # type: ignore[no-untyped-call]
    return codes


class _TakeCodes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codebook: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.like = codebook.new_empty(()).expand(codebook.shape)  # the shape, without the codes
        rows = flat_indices(indices, codebook).reshape(-1)
        codes = codebook.reshape(-1, codebook.shape[-1]).index_select(0, rows)
        return codes.view(*indices.shape, codebook.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        return code_statistics(grad, indices, ctx.like).sums.to(grad.dtype), None
