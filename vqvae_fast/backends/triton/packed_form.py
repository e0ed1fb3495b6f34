"""The form of a packed codebook: what `prepare` makes of it, and where that lies.

A search has it made in its arena. A codebook that does not change has it in bytes of its own
(`kept_books`), which is where the searches in it then read.
"""

from math import prod
from typing import NamedTuple
from zlib import crc32

import torch

from vqvae_fast.backends.triton.configurations import columns_for_start, configuration
from vqvae_fast.backends.triton.launch import Pointer, Region, aligned_bytes

_NUM_PIECES = 8
# Raise it with every change of what the bytes mean.
_FORMAT = 1
_TAIL = 256


class Prepared(NamedTuple):
    """A packed codebook.

    Attributes:
        codes: [H, rows, columns], float16 or float32; zero behind K and D, but for the start.
        start: [H, rows] float32, what a code's score starts at: base - |e|^2/2 of the centred,
            scaled code; NEVER_CHOSEN for a code that cannot be packed and for padding. With
            start_columns it lies behind D in `codes`, in that many pieces, and this is empty.
        centre: [H, columns] float32, unscaled.
        scale: [H] float32, a power of two.
        base: [H] float32, which keeps the scores that matter from being negative.
        max_norm: [H] int32, the bits of the largest packed code's norm as a float32.
        max_rounding: [H] int32, likewise of the largest distance from a code to its packed form.
        has_outliers: [H] int32, not 0 if a finite code is too large to be packed.
        rows: K, padded.
        columns: D, padded.
    """

    codes: Pointer
    start: Pointer
    centre: Pointer
    scale: Pointer
    base: Pointer
    max_norm: Pointer
    max_rounding: Pointer
    has_outliers: Pointer
    rows: int
    columns: int

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        """What a kernel takes."""
        return tuple(part for part in self if isinstance(part, Pointer))


class PackedForm(NamedTuple):
    """How books are packed.

    Attributes:
        shape: H, K and D.
        dtype: float16 for the matrix unit, float32 without it.
        block_codes: K is padded to a multiple of it, a power of two.
        block_dim: D is padded to a multiple of it, a power of two.
        start_columns: columns behind D that hold what a code's score starts at, or 0.
    """

    shape: tuple[int, int, int]
    dtype: torch.dtype
    block_codes: int
    block_dim: int
    start_columns: int

    @classmethod
    def of_search(cls, shape: tuple[int, int, int], dtype: torch.dtype) -> "PackedForm":
        """The form that a search in six kernels reads."""
        config = configuration(shape[2], dtype)
        start_columns = columns_for_start(config, shape[2], dtype)
        return cls(shape, dtype, config.block_codes, config.block_dim, start_columns)

    @property
    def rows(self) -> int:
        """K, padded."""
        return -(-self.shape[1] // self.block_codes) * self.block_codes

    @property
    def columns(self) -> int:
        """D, padded."""
        return -(-self.shape[2] // self.block_dim) * self.block_dim

    def bytes_of_book(self, book_dtype: torch.dtype) -> int:
        """The bytes of a book where a codebook [H, ...] of that dtype is kept as bytes [H, this].

        All books' pieces of one kind lie together, so some of the rows are no packed form of some
        of the books. One byte for each of H keeps them from being taken for it.

        Nothing may wait for the device to read what is in the bytes, so their number is what tells
        them from those of another codebook. It grows by up to _TAIL pieces of 16 bytes, according
        to a checksum of the form and of the codebook's sizes and dtype.
        """
        sizes = (prod(shape) * dtype.itemsize for shape, dtype in self._pieces())
        checksum = crc32(repr((_FORMAT, self, book_dtype)).encode()) % _TAIL
        return sum(map(aligned_bytes, sizes)) + 16 * checksum + self.shape[0]

    def laid_out(self, region: Region, limits: tuple[Pointer, ...] = ()) -> Prepared:
        """The packed books in the next pieces of a region.

        limits: the last three pieces, if they lie elsewhere.
        """
        pieces = self._pieces()[: _NUM_PIECES - len(limits)]
        taken = [region.take((self.shape[0], *shape), dtype) for shape, dtype in pieces]
        codes, start, centre, scale, base, *own_limits = taken
        max_norm, max_rounding, has_outliers = limits or own_limits
        return Prepared(
            codes,
            start,
            centre,
            scale,
            base,
            max_norm,
            max_rounding,
            has_outliers,
            self.rows,
            self.columns,
        )

    def _pieces(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of what :class:`Prepared` points to, without H."""
        starts = 0 if self.start_columns else self.rows
        return [
            ((self.rows, self.columns), self.dtype),
            ((starts,), torch.float32),
            ((self.columns,), torch.float32),
            *[((), torch.float32)] * 2,
            *[((), torch.int32)] * 3,
        ]
