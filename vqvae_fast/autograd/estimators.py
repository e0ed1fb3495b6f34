"""Gradient estimators: what the gradient of a quantized vector says to the vector itself."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vqvae_fast.formulas import rotated_gradient


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """q, with the gradient passed to z as it is (van den Oord et al., arXiv 1711.00937).

    z, q: [..., d].
    """
    return z + (q - z).detach()


def code_itself(z: Tensor, q: Tensor) -> Tensor:
    """As :func:`straight_through`, but q to the bit, without the rounding of z + (q - z)."""
    code: Tensor = _CodeItself.apply(z, q)  # type: ignore[no-untyped-call]
    return code


def rotate_to(z: Tensor, q: Tensor) -> Tensor:
    """q, with the gradient rotated and scaled as z would have to be to become q.

    The rotation trick, Fifty et al., arXiv 2410.06424, section 4.2: with R the rotation from z's
    direction to q's, q = |q|/|z| R z, of which |q|/|z| R is held constant. R is the product of two
    reflections, so the gradient costs two dot products a vector.

    z, q: [..., d]; q gets no gradient.
    """
    rotated: Tensor = _RotateTo.apply(z, q)  # type: ignore[no-untyped-call]
    return rotated


def directional_reparam(z: Tensor, q: Tensor, variance: float = 5e-3) -> Tensor:
    """z moved by |q - z| in the direction of q, with some noise on it; both get a gradient.

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
        # torch's compiler sees through a clone, and reuses what is saved: the result's memory.
        result: Tensor = torch.ops.vqvae_fast.copy_of_codes(q)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        z, q = ctx.saved_tensors
        return rotated_gradient(grad, z.detach(), q.detach()), None  # the rotation is constant
