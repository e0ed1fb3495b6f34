"""Gradient estimators turn the gradient of a quantized vector into one of the vector itself."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vqvae_fast.formulas import rotated_gradient


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """Return q and pass the gradient to z unchanged (van den Oord et al., arXiv 1711.00937).

    z, q: [..., d].
    """
    return z + (q - z).detach()


def code_itself(z: Tensor, q: Tensor) -> Tensor:
    """Return exactly q, without the rounding of z + (q - z) in :func:`straight_through`."""
    code: Tensor = _CodeItself.apply(z, q)  # type: ignore[no-untyped-call]
    return code


def rotate_to(z: Tensor, q: Tensor) -> Tensor:
    """Return q, and rotate and scale the gradient as z must be rotated and scaled to become q.

    The rotation trick, Fifty et al., arXiv 2410.06424, section 4.2: if R is the rotation from z's
    direction to q's, then q = |q|/|z| R z, and the gradient treats |q|/|z| R as a constant. R is
    the product of two reflections, so the gradient costs two dot products a vector.

    z, q: [..., d]; q gets no gradient.
    """
    rotated: Tensor = _RotateTo.apply(z, q)  # type: ignore[no-untyped-call]
    return rotated


def directional_reparam(z: Tensor, q: Tensor, variance: float = 5e-3) -> Tensor:
    """Move z by |q - z| in the direction of q, with some noise; both get a gradient.

    DiVeQ, figure 1 of https://openreview.net/forum?id=KRVnpTbx7R. z, q: [..., d].
    """
    error = q - z
    noisy = error + variance**0.5 * torch.randn_like(error)
    direction = functional.normalize(noisy, dim=-1, eps=1e-6).detach()
    moved: Tensor = z + direction * error.norm(dim=-1, keepdim=True)
    return moved


class _CodeItself(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, q: Tensor) -> Tensor:
        return q.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _RotateTo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, q: Tensor) -> Tensor:
        ctx.save_for_backward(z, q)
        # torch's compiler removes a clone and then reuses the memory of the result, which is saved.
        result: Tensor = torch.ops.vqvae_fast.copy_of_codes(q)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        z, q = ctx.saved_tensors
        return rotated_gradient(grad, z.detach(), q.detach()), None  # the rotation is constant
