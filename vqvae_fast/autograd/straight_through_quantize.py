"""The Function of :func:`vqvae_fast.quantize`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vqvae_fast.autograd.backward_pass import (
    is_recorded,
    leave_missing_gradients_out,
    mean_square_scale,
    sum_of,
)
from vqvae_fast.autograd.gather import sum_by_code, take_codes
from vqvae_fast.formulas import flat_indices

_NO_GRADIENTS = (None, None, None, None)  # of the weights, sparse and packed


class StraightThroughQuantize(torch.autograd.Function):
    """Nearest code with the straight-through gradient and both VQ losses.

    The value and the gradients of every order are those of ``z + (q - z).detach()`` together with
    ``commitment * mean((z - sg[q])^2) + codebook * mean((sg[z] - q)^2)`` (arXiv 1711.00937, eq. 3).
    Both means are the same number, which comes from the distances that the search has measured
    anyway, so the losses cost no further pass over the data. The Function saves z, codebook and
    indices for the backward pass, or only the error z - q if the codebook needs no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        codebook: Tensor,
        commitment_weight: float,
        codebook_weight: float,
        sparse: bool,
        packed: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Map z [..., D] and codebook [K, D] or [H, K, D] to quantized, indices, distances, loss.

        ``packed`` is the packed form of a codebook that needs no gradient.

        If the backward pass needs the error, it is a fifth output, because autograd knows
        how a saved output depends on the inputs, and a second derivative needs that.
        """
        if packed is None:
            quantized, indices, distances = torch.ops.vqvae_fast.quantize(z, codebook)
        else:
            quantized, indices, distances = torch.ops.vqvae_fast.quantize_packed(
                z, codebook, packed
            )
        loss = distances.sum() * ((commitment_weight + codebook_weight) / _count(z))
        error: tuple[Tensor, ...] = ()
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(z, codebook, indices)
            indices = torch.ops.vqvae_fast.copy_of_codes(indices)  # the caller may write to them
        elif ctx.needs_input_grad[0]:
            # The commitment gradient needs the chosen codes as they were in this search. A codebook
            # without a gradient is often rewritten before the backward pass (EMA): autograd refuses
            # that in eager mode, and AOTAutograd would compute from the new codes. The error has
            # its own memory, so later writes to z or q cannot change it.
            error = (_wide(z) - _wide(quantized),)
            ctx.save_for_backward(*error)
        ctx.weights, ctx.sparse = (commitment_weight, codebook_weight), sparse
        ctx.dtype = z.dtype
        ctx.mark_non_differentiable(indices, distances)
        leave_missing_gradients_out(ctx)
        return quantized, indices, distances, loss, *error

    @staticmethod
    def backward(
        ctx: Any,
        grad_quantized: Tensor | None,
        _indices: None,
        _distances: None,
        grad_loss: Tensor | None,
        grad_error: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients to z (straight-through and commitment) and to the codebook.

        Without a gradient of the loss the codebook has none, so an optimizer leaves it alone.
        """
        if ctx.needs_input_grad[1] and grad_loss is not None:
            z, codebook, indices = ctx.saved_tensors
            if grad_quantized is None:
                grad_quantized = z.new_zeros(()).expand(z.shape)
            backward: Callable[..., tuple[Tensor, Tensor]] = torch.ops.vqvae_fast.quantize_backward
            if ctx.sparse:
                backward = _sparse_backward
            elif is_recorded():
                backward = _differentiable_backward
            grad_z, grad_codebook = backward(
                grad_quantized, grad_loss, z, codebook, indices, *ctx.weights
            )
            return grad_z if ctx.needs_input_grad[0] else None, grad_codebook, *_NO_GRADIENTS
        if not ctx.needs_input_grad[0]:
            return None, None, *_NO_GRADIENTS
        parts = [grad_quantized, grad_error]
        if grad_loss is not None:
            (error,) = ctx.saved_tensors
            parts.append(mean_square_scale(grad_loss, error) * ctx.weights[0] * error)
        total = sum_of(*parts)
        return None if total is None else total.to(ctx.dtype), None, *_NO_GRADIENTS


def _differentiable_backward(
    grad_quantized: Tensor,
    grad_loss: Tensor,
    z: Tensor,
    codebook: Tensor,
    indices: Tensor,
    commitment_weight: float,
    codebook_weight: float,
) -> tuple[Tensor, Tensor]:
    """Computes torch.ops.vqvae_fast.quantize_backward by differentiable functions."""
    dtype, z = z.dtype, _wide(z)
    codes = _wide(take_codes(codebook, indices))
    scale = mean_square_scale(grad_loss, z)
    grad_z = grad_quantized + scale * commitment_weight * (z - codes.detach())
    errors = scale * codebook_weight * (codes - z.detach())
    grad_codebook = sum_by_code(errors, indices, codebook)
    return grad_z.to(dtype), grad_codebook.to(codebook.dtype)


def _sparse_backward(
    grad_quantized: Tensor,
    grad_loss: Tensor,
    z: Tensor,
    codebook: Tensor,
    indices: Tensor,
    *weights: float,
) -> tuple[Tensor, Tensor]:
    """Computes the same gradients, but the codebook's only for the chosen codes."""
    if is_recorded():
        raise RuntimeError(
            "quantize(sparse=True) has no second derivative (create_graph=True); use sparse=False"
        )
    num_codes, dim = codebook.shape[-2:]
    chosen, places = flat_indices(indices, codebook).unique(return_inverse=True)
    codes = codebook.detach().reshape(-1, dim)[chosen]
    if not len(codes):  # an empty batch
        codes = codes.new_zeros(1, dim)
    grad_z, grad_codes = torch.ops.vqvae_fast.quantize_backward(
        grad_quantized, grad_loss, z, codes, places, *weights
    )
    which = chosen[None]
    if codebook.dim() == 3:
        which = torch.stack([chosen // num_codes, chosen % num_codes])
    values = grad_codes[: len(chosen)]
    grad_codebook = torch.sparse_coo_tensor(
        which, values, codebook.shape, is_coalesced=True, check_invariants=False
    )
    return grad_z, grad_codebook


def _count(z: Tensor) -> int:
    """Returns the number of elements, at least 1, so that an empty batch has a loss of 0."""
    return max(z.numel(), 1)


def _wide(t: Tensor) -> Tensor:
    """Returns t in float32 at least, because half-precision errors would be rounded twice."""
    return t if t.dtype == torch.float64 else t.float()
