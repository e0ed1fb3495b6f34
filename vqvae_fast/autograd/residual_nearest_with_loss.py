"""The default stages of residual quantization in one Function that stores no stage.

Stage by stage, autograd would store each stage's input and codes, Q times the vectors. This
Function stores the input, the indices and the codebooks, and its backward pass computes the stages
again.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from vqvae_fast.autograd.backward_pass import (
    add_scaled,
    is_recorded,
    leave_missing_gradients_out,
    mean_square_scale,
    scaled,
    sum_of,
)
from vqvae_fast.autograd.gather import sum_by_code, take_codes
from vqvae_fast.formulas import rotated_gradient


class Stage(Protocol):
    """One stage of :func:`residual_nearest_with_loss`: it calls begin, searches, calls learn."""

    def writes(self) -> bool:
        """Whether :meth:`learn`, in this call or a later one, writes to the codes."""

    def begin(self, residual: Tensor) -> Tensor:
        """Take the stage's input [..., d] and return the codes [K, d] to search.

        Codes that learn by a gradient require one, and are a copy if anything writes to them.
        """

    def learn(self, residual: Tensor, indices: Tensor) -> None:
        """Learn from the input and the indices [...]; called after the search, without autograd."""


class ResidualNearestWithLoss(NamedTuple):
    """Result of :func:`residual_nearest_with_loss`.

    Attributes:
        quantized: [..., d], the sum of the codes, with the stages' gradients to the rows.
        indices: [..., Q].
        commitments: [Q], with their gradients.
    """

    quantized: Tensor
    indices: Tensor
    commitments: Tensor


def residual_nearest_with_loss(
    rows: Tensor, stages: Sequence[Stage], *, rotates: bool
) -> ResidualNearestWithLoss:
    """Find each stage's nearest codes to its residual, and its loss mean((z - q)^2).

    Args:
        rows: [..., d], in float32 or float64, the codes' dtype.
        stages: run one after the other. The gradient to ``rows`` treats the codes of earlier stages
            as constants.
        rotates: a stage's gradient to its input is that of
            :func:`vqvae_fast.autograd.estimators.rotate_to`, otherwise straight-through.
    """
    residual = rows.detach()
    chosen, places, kept, losses = [], [], [], []
    for stage in stages:
        codes = stage.begin(residual)
        quantized, indices, distances = torch.ops.vqvae_fast.quantize(residual, codes.detach())
        chosen.append(indices)
        losses.append(distances.sum() / max(rows.numel(), 1))
        has_copy = codes.requires_grad and torch.is_grad_enabled()
        if stage.writes() and not has_copy:  # the backward pass needs these codes
            if indices.numel() < len(codes):
                codes = quantized.flatten(0, -2)
                indices = _as_they_come(indices)
            else:
                codes = torch.ops.vqvae_fast.copy_of_codes(codes)
        places.append(indices)
        kept.append(codes)
        with torch.no_grad():
            stage.learn(residual, chosen[-1])
        residual = residual - quantized
    found = torch.stack(chosen, dim=-1)
    where = torch.stack(places, dim=-1)  # a copy, because the caller may write to the result
    total, commitments = _WithGradient.apply(rows, torch.stack(losses), where, rotates, *kept)  # type: ignore[no-untyped-call]
    return ResidualNearestWithLoss(total, found, commitments)


def _as_they_come(indices: Tensor) -> Tensor:
    """Returns 0, 1, ... in the shape of indices."""
    return torch.arange(indices.numel(), device=indices.device).view(indices.shape)


class _WithGradient(torch.autograd.Function):
    """Sums the codes, and gives the known losses their gradients."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, losses: Tensor, indices: Tensor, rotates: bool, *books: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.rotates = rotates
        ctx.save_for_backward(rows, indices, *books)
        total = rows.new_zeros(rows.shape)  # not a view, because the caller may write to it
        for stage, book in enumerate(books):
            total += take_codes(book, indices[..., stage])
        leave_missing_gradients_out(ctx)
        return total, losses.clone()

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, grad_losses: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        rows, indices, *books = ctx.saved_tensors
        grad_rows = None
        if ctx.needs_input_grad[0]:
            grad_of_rows = _grad_of_rows if is_recorded() else _grad_of_rows_at_once
            grad_rows = grad_of_rows(grad, grad_losses, rows, books, indices, ctx.rotates)
        grads_of_books: list[Tensor | None] = [None] * len(books)
        if any(ctx.needs_input_grad[4:]) and grad_losses is not None:
            for stage, (residual, codes) in enumerate(_stages(rows, books, indices)):
                if ctx.needs_input_grad[4 + stage]:
                    # Errors are summed, because a difference of sums would cancel.
                    sums = sum_by_code(residual - codes, indices[..., stage], books[stage])
                    scale = mean_square_scale(grad_losses[stage], rows)
                    grads_of_books[stage] = scaled(sums, -scale)
        return grad_rows, None, None, None, *grads_of_books


def _stages(
    rows: Tensor, books: Sequence[Tensor], indices: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields each stage's input, to which earlier codes are constants, and the stage's codes."""
    residual = rows
    for stage, book in enumerate(books):
        codes = take_codes(book, indices[..., stage])
        yield residual, codes
        residual = residual - codes.detach()


def _grad_of_rows_at_once(
    grad: Tensor | None,
    grad_losses: Tensor | None,
    rows: Tensor,
    books: Sequence[Tensor],
    indices: Tensor,
    rotates: bool,
) -> Tensor:
    """Computes the gradient of the vectors by the fused op."""
    if grad is None:
        grad = rows.new_zeros(()).expand(rows.shape)
    if grad_losses is None:
        grad_losses = rows.new_zeros(len(books))
    grad_rows: Tensor = torch.ops.vqvae_fast.residual_backward(
        grad, grad_losses, rows, books, indices, rotates
    )
    return grad_rows


def _grad_of_rows(
    grad: Tensor | None,
    grad_losses: Tensor | None,
    rows: Tensor,
    books: Sequence[Tensor],
    indices: Tensor,
    rotates: bool,
) -> Tensor | None:
    """Computes the same gradient by differentiable functions."""
    total: Tensor | None = None
    for stage, (residual, codes) in enumerate(_stages(rows, books, indices)):
        passed = grad
        if rotates and grad is not None:
            passed = rotated_gradient(grad, residual.detach(), codes.detach())
        total = sum_of(total, passed)
        if grad_losses is not None:
            scale = mean_square_scale(grad_losses[stage], rows)
            total = add_scaled(total, residual - codes, scale)
    return total
