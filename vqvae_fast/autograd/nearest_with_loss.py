"""The default quantizer in one Function: search, gather, commitment loss, gradient estimator.

It computes the same as :mod:`vqvae_fast.nn.steps.choosing`, :mod:`vqvae_fast.nn.steps.losses` and
:mod:`vqvae_fast.autograd.estimators` one after the other, in fewer passes over the vectors.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqvae_fast.autograd.backward_pass import (
    add_scaled,
    leave_missing_gradients_out,
    mean_square_scale,
    scaled,
    sum_of,
)
from vqvae_fast.autograd.gather import sum_by_code, take_codes
from vqvae_fast.formulas import rotated_gradient


class NearestWithLoss(NamedTuple):
    """Result of :func:`nearest_with_loss`.

    Attributes:
        quantized: [C, ..., d], with the estimator's gradient to the rows.
        indices: [C, ...].
        commitment: 0-d, with its gradient.
    """

    quantized: Tensor
    indices: Tensor
    commitment: Tensor


def nearest_with_loss(
    rows: Tensor, codes: Tensor, *, rotates: bool, codes_learn: bool
) -> NearestWithLoss:
    """Find the nearest codes and the loss mean((z - q)^2).

    The loss comes from the distances that the search has measured anyway.

    Args:
        rows: [C, ..., d], in float32 or float64.
        codes: [C, K, d], in the rows' dtype.
        rotates: the gradient to the rows is that of :func:`rotate_to`, otherwise straight-through.
        codes_learn: the loss has a gradient to the codes, too.
    """
    quantized, indices, commitment, *_ = _NearestWithLoss.apply(  # type: ignore[no-untyped-call]
        rows, codes if codes_learn else codes.detach(), rotates
    )
    return NearestWithLoss(quantized, indices, commitment)


class _NearestWithLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, codes: Tensor, rotates: bool) -> tuple[Tensor, ...]:
        quantized, indices, distances = torch.ops.vqvae_fast.quantize(rows, codes)
        commitment = distances.sum() / max(rows.numel(), 1)
        ctx.rotates, ctx.codes_learn = rotates, ctx.needs_input_grad[1]
        leave_missing_gradients_out(ctx)
        if ctx.codes_learn:  # the codes do not change, so the backward pass can gather them again
            ctx.save_for_backward(rows, codes, indices)
            indices = torch.ops.vqvae_fast.copy_of_codes(indices)  # the caller may write to them
        elif rotates and ctx.needs_input_grad[0]:  # the caller may write to the result
            ctx.save_for_backward(rows, quantized)
            quantized = torch.ops.vqvae_fast.copy_of_codes(quantized)
        elif ctx.needs_input_grad[0]:
            # The error is an output, because autograd knows the derivative of a saved output.
            error = rows - quantized
            ctx.save_for_backward(error)
            ctx.mark_non_differentiable(indices)
            return quantized, indices, commitment, error
        ctx.mark_non_differentiable(indices)
        return quantized, indices, commitment

    @staticmethod
    def backward(
        ctx: Any,
        grad: Tensor | None,
        _indices: None,
        grad_loss: Tensor | None,
        grad_error: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None, None]:
        if ctx.codes_learn:
            rows, codes, indices = ctx.saved_tensors
            quantized = take_codes(codes, indices)
            error = rows - quantized
        elif ctx.rotates:
            rows, quantized = ctx.saved_tensors
            error = rows - quantized
        else:
            (error,) = ctx.saved_tensors
        grad_rows = grad_codes = None
        if ctx.needs_input_grad[0]:
            if ctx.rotates and grad is not None:
                grad = rotated_gradient(grad, rows.detach(), quantized.detach())
            grad_rows = sum_of(grad, grad_error)
        if grad_loss is not None:
            scale = mean_square_scale(grad_loss, error)
            if ctx.needs_input_grad[0]:
                grad_rows = add_scaled(grad_rows, error, scale)
            if ctx.codes_learn:  # errors are summed, because a difference of sums would cancel
                grad_codes = scaled(sum_by_code(error, indices, codes), -scale)
        return grad_rows, grad_codes, None
