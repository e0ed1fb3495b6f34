"""The tensors of a search, as its launches see them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from vqvae_fast.backends.triton.launch import Pointer
from vqvae_fast.backends.triton.packed_form import Prepared
from vqvae_fast.backends.triton.rows import (
    Books,
    Rows,
    are_rows,
    head_stride,
    rows_at,
    widest_alignment,
)


class SearchOperands(NamedTuple):
    """A search as its launches see it.

    Attributes:
        rows: those of the first book.
        z_head: from there to the rows of the next book.
        codebook: all books.
        target: where the rows' codes are written; z if they are not written.
        q_head: as z_head.
        quantizes: whether codes are written.
        indices: int64 [H, N].
        distances: float32 or float64 [H, N].
        packed_dtype: the dtype in which scores are multiplied.
        prepared: the packed codes that are there before the search; None if it packs them.
    """

    rows: Rows
    z_head: int
    codebook: Books
    target: Rows
    q_head: int
    quantizes: bool
    indices: Pointer
    distances: Pointer
    packed_dtype: torch.dtype
    prepared: Prepared | None

    @property
    def z_arguments(self) -> tuple[object, ...]:
        """The rows."""
        return (*self.rows.arguments, self.z_head, self.rows.num_rows)

    @property
    def result_arguments(self) -> tuple[object, ...]:
        """The books, and where the results go."""
        _, num_codes, dim = self.codebook.shape
        return (
            self.codebook.start,
            *self.codebook.strides,
            num_codes,
            dim,
            self.indices,
            self.distances,
            *self.target.arguments,
            self.q_head,
        )

    @property
    def row_alignment(self) -> int:
        """The alignment of the rows that the search reads and writes."""
        dim = self.codebook.shape[2]
        return widest_alignment(dim, self.rows, self.z_head, self.target, self.q_head)

    @property
    def book_alignment(self) -> int:
        """The alignment of the codes."""
        return widest_alignment(self.codebook.shape[2], *self.codebook.strides[:2])

    @property
    def alignment(self) -> int:
        """The alignment of all rows and codes."""
        return min(self.row_alignment, self.book_alignment)


def rows_of_books(
    operand: int,
    dtype: torch.dtype,
    shape: Sequence[int],
    strides: Sequence[int],
    has_heads: bool,
) -> tuple[Rows, int, bool]:
    """How a tensor [H, ..., D], or without H, is read.

    Returns:
        The first book's rows, the stride to the next book's, and whether that is said of a
        contiguous copy, because the tensor itself cannot be read as rows.
    """
    if not has_heads:
        shape, strides = (1, *shape), (0, *strides)
    copies = not are_rows(shape[1:], strides[1:])
    if copies:
        strides = torch.empty(shape, device="meta").stride()
    rows = rows_at(Pointer(operand, dtype), shape[1:], strides[1:])
    return rows, head_stride(shape, strides), copies
