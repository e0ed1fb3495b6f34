"""The default stages of residual quantization in one piece, whose backward pass keeps no stage.

Stage by stage autograd would hold each stage's input and codes, Q times the vectors. The input, the
indices and the codes say the same: the backward pass goes through the stages once more.
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
    """One stage as :func:`residual_nearest_with_loss` runs it: begin, a search, learn."""

    @property
    def writes(self) -> bool:
        """Whether :meth:`learn`, in this call or a later one, writes to the codes."""

    def begin(self, residual: Tensor) -> Tensor:
        """Called first, with the stage's input [..., d]; gives the codes [K, d] to search.

        Where the codes learn by a gradient they have one, and are a copy if anything writes to
        them.
        """

    def learn(self, residual: Tensor, indices: Tensor) -> None:
        """Called after the search, without autograd, with the input and the indices [...]."""


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
    """Nearest codes of what each stage before has left, and how far they are: mean((z - q)^2).

    Args:
        rows: [..., d], in float32 or float64, the codes' dtype.
        stages: run one after the other; the input of each is constant but for ``rows``.
        rotates: a stage's gradient to its input is that of
            :func:`vqvae_fast.autograd.estimators.rotate_to`, else straight-through.
    """
    residual = rows.detach()
    chosen, places, kept, losses = [], [], [], []
    for stage in stages:
        codes = stage.begin(residual)
        quantized, indices, distances = torch.ops.vqvae_fast.quantize(residual, codes.detach())
        chosen.append(indices)
        losses.append(distances.sum() / max(rows.numel(), 1))
        has_copy = codes.requires_grad and torch.is_grad_enabled()
        if stage.writes and not has_copy:  # what the backward pass will ask for
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
    where = torch.stack(places, dim=-1)  # not what is returned: a user may write to that
    total, commitments = _WithGradient.apply(rows, torch.stack(losses), where, rotates, *kept)  # type: ignore[no-untyped-call]
    return ResidualNearestWithLoss(total, found, commitments)


def _as_they_come(indices: Tensor) -> Tensor:
    """0, 1, ... in the shape of indices."""
    return torch.arange(indices.numel(), device=indices.device).view(indices.shape)


class _WithGradient(torch.autograd.Function):
    """The sum of the codes, and the losses, which are known."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, losses: Tensor, indices: Tensor, rotates: bool, *books: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.rotates = rotates
        ctx.save_for_backward(rows, indices, *books)
        total = rows.new_zeros(rows.shape)  # no view: a user may write to it
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
                    # A sum of errors: the difference of two sums would cancel.
                    sums = sum_by_code(residual - codes, indices[..., stage], books[stage])
                    scale = mean_square_scale(grad_losses[stage], rows)
                    grads_of_books[stage] = scaled(sums, -scale)
        return grad_rows, None, None, None, *grads_of_books


def _stages(
    rows: Tensor, books: Sequence[Tensor], indices: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """The input of each stage, to which the codes before it are constants, and its codes."""
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
    """The gradient of the vectors by the fused op."""
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
    """The same of functions that have a derivative."""
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
