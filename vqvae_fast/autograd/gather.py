"""Gathering codes by index and summing the vectors of a code, each the derivative of the other."""

from typing import Any

import torch
from torch import Tensor

from vqvae_fast.autograd.backward_pass import is_recorded, leave_missing_gradients_out
from vqvae_fast.formulas import flat_indices


def take_codes(codebook: Tensor, indices: Tensor) -> Tensor:
    """Return codebook[indices], whose gradient to the codebook is :func:`sum_by_code`.

    Args:
        codebook: [K, D], or [C, K, D] separate books.
        indices: int64 [...], or [C, ...], in [0, K).

    Returns:
        [..., D], or [C, ..., D]: a copy of the codes.
    """
    codes: Tensor = _TakeCodes.apply(codebook, indices)  # type: ignore[no-untyped-call]
    return codes


def sum_by_code(rows: Tensor, indices: Tensor, codebook: Tensor) -> Tensor:
    """Sum the rows of each code deterministically; the gradient to the rows is :func:`take_codes`.

    Args:
        rows: [..., D], or [C, ..., D] with separate books.
        indices: int64, rows.shape[:-1], in [0, K).
        codebook: [K, D] or [C, K, D]; only its shape is used.

    Returns:
        Sums in the codebook's shape, float32 (float64 for float64 rows).
    """
    sums: Tensor = _SumByCode.apply(rows, indices, codebook)  # type: ignore[no-untyped-call]
    return sums


def copy_of_codes(codebook: Tensor) -> Tensor:
    """Return a copy of the codebook [..., D] that later writes do not change, with its gradient.

    torch's compiler would not keep a plain clone; it would clone again in the backward pass.
    """
    codes: Tensor = _CopyOfCodes.apply(codebook)  # type: ignore[no-untyped-call]
    return codes


class _CopyOfCodes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codebook: Tensor) -> Tensor:
        leave_missing_gradients_out(ctx)
        codes: Tensor = torch.ops.vqvae_fast.copy_of_codes(codebook)
        return codes

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Tensor | None:
        return grad


class _TakeCodes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codebook: Tensor, indices: Tensor) -> Tensor:
        if ctx.needs_input_grad[0]:
            # Save a copy: a module returns these indices, and the caller may write to them.
            ctx.save_for_backward(torch.ops.vqvae_fast.copy_of_codes(indices))
        ctx.like = _shape_of(codebook)
        codes: Tensor = torch.ops.vqvae_fast.take_codes(codebook, indices)
        return codes

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        add_up = sum_by_code if is_recorded() else _sum_by_code
        return add_up(grad, indices, ctx.like).to(grad.dtype), None


class _SumByCode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, indices: Tensor, codebook: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.dtype = rows.dtype
        return _sum_by_code(rows, indices, codebook)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (indices,) = ctx.saved_tensors
        return take_codes(grad, indices).to(ctx.dtype), None, None


def _sum_by_code(rows: Tensor, indices: Tensor, codebook: Tensor) -> Tensor:
    sums, _ = torch.ops.vqvae_fast.segment_sum(
        rows.detach(), flat_indices(indices, codebook), codebook.shape[:-1].numel()
    )
    of_codes: Tensor = sums.view(codebook.shape)
    return of_codes


def _shape_of(codebook: Tensor) -> Tensor:
    """Returns a tensor of the codebook's shape that does not keep the codes alive."""
    return codebook.new_empty(()).expand(codebook.shape)
