"""Helpers that the backward passes of all autograd Functions share.

Each backward pass computes its gradients by fused ops. If autograd records the pass, it uses
differentiable functions instead, so that a gradient penalty gets its second derivative.
"""

import functools
from typing import Any

import torch
from torch import Tensor


def is_recorded() -> bool:
    """Whether autograd records the current backward pass, to differentiate it once more.

    ``create_graph=True`` requests that. Compiled functions have no second derivative, because
    torch's compiler refuses it.
    """
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def leave_missing_gradients_out(ctx: Any) -> None:
    """Make backward receive None for a missing gradient instead of zeros of the output's size.

    torch's compiler does not know this call; it removes the zeros by itself.
    """
    if not torch.compiler.is_compiling():
        ctx.set_materialize_grads(False)


def sum_of(*gradients: Tensor | None) -> Tensor | None:
    """Returns the sum of the gradients that are not None; None if all are."""
    present = [gradient for gradient in gradients if gradient is not None]
    return functools.reduce(torch.add, present) if present else None


def mean_square_scale(grad_loss: Tensor, errors: Tensor) -> Tensor:
    """Returns the factor s for which the gradient of mean(errors^2) is s * errors."""
    return grad_loss * (2.0 / max(errors.numel(), 1))


def scaled(gradient: Tensor, scale: Tensor) -> Tensor:
    """Returns gradient * scale, in the gradient's memory if autograd does not record the pass."""
    return gradient * scale if is_recorded() else gradient.mul_(scale)


def add_scaled(gradient: Tensor | None, error: Tensor, scale: Tensor) -> Tensor:
    """Returns gradient + error * scale; a missing gradient counts as zero."""
    return error * scale if gradient is None else torch.addcmul(gradient, error, scale)
