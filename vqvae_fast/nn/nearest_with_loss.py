"""The default quantizer in one piece: search, gather, commitment loss and gradient estimator.

What :mod:`vqvae_fast.nn.choosing`, :mod:`vqvae_fast.nn.losses` and
:mod:`vqvae_fast.nn.estimators` say one after the other, with one pass over the vectors where each
of them takes some.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vqvae_fast.functional import code_statistics
from vqvae_fast.nn.take_codes import take_codes
from vqvae_fast.reference import rotated_gradient


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
    """The nearest codes, and how far they are: mean((z - q)^2).

    The loss is the sum of the distances that the search has measured anyway.

    Args:
        rows: [C, ..., d], in float32 or float64.
        codes: [C, K, d], of that dtype.
        rotates: the gradient to the rows is that of :func:`rotate_to`, else straight-through.
        codes_learn: the loss has a gradient to the codes, too.
    """
    return NearestWithLoss(
        *_NearestWithLoss.apply(rows, codes if codes_learn else codes.detach(), rotates)  # type: ignore[no-untyped-call]
    )


class _NearestWithLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, codes: Tensor, rotates: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        quantized, indices, distances = torch.ops.vqvae_fast.quantize(rows, codes)
        ctx.rotates, ctx.codes_learn = rotates, ctx.needs_input_grad[1]
        ctx.mark_non_differentiable(indices)
        if ctx.codes_learn:  # they stay as they are, and give what was chosen once more
            ctx.save_for_backward(rows, codes, indices)
        elif rotates and ctx.needs_input_grad[0]:  # whoever gets the result may write to it
            ctx.save_for_backward(rows, quantized)
            quantized = torch.ops.vqvae_fast.copy_of_codes(quantized)
        elif ctx.needs_input_grad[0]:
            ctx.save_for_backward(rows - quantized)
        return quantized, indices, distances.sum() / max(rows.numel(), 1)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor, _indices: None, grad_loss: Tensor
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
        scale = grad_loss * (2.0 / max(error.numel(), 1))
        grad_rows = grad_codes = None
        if ctx.needs_input_grad[0]:
            if ctx.rotates:
                grad = rotated_gradient(grad, rows, quantized)
            grad_rows = torch.addcmul(grad, error, scale)
        if ctx.codes_learn:  # a sum of errors: the difference of two sums would cancel
            grad_codes = code_statistics(error, indices, codes).sums.mul_(-scale)
        return grad_rows, grad_codes, None
