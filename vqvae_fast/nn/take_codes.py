"""The codes as they are now: those of indices, or all of them."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vqvae_fast.functional import code_statistics


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


def copy_of_codes(codebook: Tensor) -> Tensor:
    """A copy that no later write to the codebook [..., D] reaches, with its gradient.

    A plain clone is none to torch's compiler, which makes it again in the backward pass.
    """
    codes: Tensor = _CopyOfCodes.apply(codebook)  # type: ignore[no-untyped-call]
    return codes


class _CopyOfCodes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codebook: Tensor) -> Tensor:
        codes: Tensor = torch.ops.vqvae_fast.copy_of_codes(codebook)
        return codes

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _TakeCodes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codebook: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.like = codebook.new_empty(()).expand(codebook.shape)  # the shape, without the codes
        codes: Tensor = torch.ops.vqvae_fast.take_codes(codebook, indices)
        return codes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        return code_statistics(grad, indices, ctx.like).sums.to(grad.dtype), None
