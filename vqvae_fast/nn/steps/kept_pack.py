"""The packed form of a module's codes, which is kept as long as the codes do not change."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqvae_fast.packed import PackedCodebook, pack


class _Kept(NamedTuple):
    """Packed books, and what was seen of the books when they were packed.

    Attributes:
        packed: the books of all stages.
        seen: of each book, where it lay and how often it had been written to.
        storages: while they are held, no other tensor can lie where the books lay.
    """

    packed: PackedCodebook
    seen: list[tuple[Any, ...]]
    storages: list[Any]


class KeptPack:
    """Packs the books of a module's stages at the first search, and again after a change.

    Every search compares where the books lie and how often they were written to, so a book that was
    replaced, loaded, moved, cast or changed in place is packed anew. A write behind torch's back
    (through ``.data`` or NumPy) cannot be seen: ``verify`` compares all elements, too.

    Args:
        verify: raise RuntimeError in a search if the books differ from the packed ones although
            torch counted no change. This reads all books, so it is for looking for such writes.
    """

    def __init__(self, verify: bool = False):
        self.verify = verify
        # One attribute, because threads may search at once: each reads it in one step.
        self._kept: _Kept | None = None

    def of(self, books: Sequence[Tensor]) -> PackedCodebook | None:
        """Return the books [K, d] of all stages as one packed [Q, K, d].

        None while torch.compile traces the call, and for tensors of inference mode, whose changes
        torch does not count.
        """
        if torch.compiler.is_compiling() or any(book.is_inference() for book in books):
            return None
        seen = [
            (book.data_ptr(), book._version, book.dtype, book.device, book.shape, book.stride())
            for book in books
        ]
        kept = self._kept
        if kept is None or seen != kept.seen:
            self.drop()
            with torch.no_grad():
                packed = pack(torch.stack([book.detach() for book in books]))
            kept = self._kept = _Kept(packed, seen, [book.untyped_storage() for book in books])
        elif self.verify and not all(map(_same, books, kept.packed.codebook)):
            raise RuntimeError(
                "the codes of a frozen quantizer were changed behind torch's back, through .data "
                "or NumPy: change them by torch's operations, or call freeze() again"
            )
        return kept.packed

    @property
    def nbytes(self) -> int:
        """The memory of the packed form, with its copy of the codes; 0 if there is none now."""
        kept = self._kept
        return 0 if kept is None else kept.packed.nbytes

    def drop(self) -> None:
        """Give the memory back; the next search packs again."""
        self._kept = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles have no packed form; they make their own."""
        return KeptPack, (self.verify,)


def _same(book: Tensor, packed: Tensor) -> bool:
    """Whether two books have the same elements, a NaN counting as equal to a NaN."""
    return bool(torch.isclose(book, packed, rtol=0, atol=0, equal_nan=True).all())
