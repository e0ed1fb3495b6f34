"""The single definition of the gradient."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vqvae_fast.reference import flat_indices


class StraightThroughQuantize(torch.autograd.Function):
    """Nearest code with the straight-through gradient and both VQ losses.

    The value and the gradient are those of ``z + (q - z).detach()`` together with
    ``commitment * mean((z - sg[q])^2) + codebook * mean((sg[z] - q)^2)`` (arXiv 1711.00937, eq. 3).
    Both means are the same number, and it is the sum of the distances that the search has
    measured anyway, so the losses cost no further pass over the data. Saved for backward:
    z, codebook and indices; only the error z - q if the codebook needs no gradient. There is no
    second derivative: what ``create_graph=True`` returns is a constant.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        codebook: Tensor,
        commitment_weight: float,
        codebook_weight: float,
        sparse: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """z [..., D], codebook [K, D] or [H, K, D] -> quantized, indices, distances, loss."""
        quantized, indices, distances = torch.ops.vqvae_fast.quantize(z, codebook)
        loss = distances.sum() * ((commitment_weight + codebook_weight) / _count(z))
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(z, codebook, indices)
        elif ctx.needs_input_grad[0]:
            # The commitment gradient wants the chosen codes as they were in this search. Without
            # a gradient of its own a codebook is often rewritten before the backward pass (EMA):
            # autograd refuses that in eager mode, and AOTAutograd computes from the new codes.
            # The error is nobody else's, so nothing that is done to z or q can change it.
            ctx.save_for_backward(_wide(z) - _wide(quantized))
        ctx.weights, ctx.sparse = (commitment_weight, codebook_weight), sparse
        ctx.mark_non_differentiable(indices, distances)
        return quantized, indices, distances, loss

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_quantized: Tensor, _indices: None, _distances: None, grad_loss: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """Gradients to z (straight-through and commitment) and to the codebook."""
        if ctx.needs_input_grad[1]:
            backward = _sparse_backward if ctx.sparse else torch.ops.vqvae_fast.quantize_backward
            grad_z, grad_codebook = backward(
                grad_quantized, grad_loss, *ctx.saved_tensors, *ctx.weights
            )
            return grad_z if ctx.needs_input_grad[0] else None, grad_codebook, None, None, None
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        (error,) = ctx.saved_tensors
        scale = grad_loss * (2.0 / _count(error)) * ctx.weights[0]
        return (grad_quantized + scale * error).to(grad_quantized.dtype), None, None, None, None


def _sparse_backward(
    grad_quantized: Tensor,
    grad_loss: Tensor,
    z: Tensor,
    codebook: Tensor,
    indices: Tensor,
    *weights: float,
) -> tuple[Tensor, Tensor]:
    """The same gradients; the codebook's holds the chosen codes alone, and so does the work."""
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
    """The number of elements that the mean runs over; an empty batch has a loss of 0, not NaN."""
    return max(z.numel(), 1)


def _wide(t: Tensor) -> Tensor:
    """float32 at least: half-precision errors would be rounded twice."""
    return t if t.dtype == torch.float64 else t.float()
