"""The packed form of a module's codes, which is kept as long as the codes do not change."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from vqvae_fast.distributed import is_distributed
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
    replaced, loaded, moved, cast or changed in place is packed anew. A write that torch does not
    count (through ``.data`` or NumPy) cannot be seen: ``verify`` compares all elements, too.

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

        None where a change could not be seen: while the call is traced, for tensors of inference
        mode, and beside other processes, whose collectives write to buffers without being counted.
        None also for tensors that hold no numbers, and for books of different sizes.
        """
        if _is_traced() or is_distributed() or not all(map(_can_be_kept, books)):
            return None
        if any(book.shape != books[0].shape for book in books):
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
                "the codes of a frozen quantizer were changed in a way that torch does not count, "
                "as through .data, NumPy or a fused optimizer: call freeze() again after it"
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


def _is_traced() -> bool:
    """Whether torch.compile, torch.jit.trace or make_fx records the call."""
    if torch.compiler.is_compiling():
        return True
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return True
    return _get_current_dispatch_mode() is not None


def _can_be_kept(book: Tensor) -> bool:
    """Whether a book holds numbers whose changes torch counts."""
    holds_numbers = not (book.is_meta or isinstance(book, FakeTensor))
    return holds_numbers and not book.is_inference() and not is_functorch_wrapped_tensor(book)


def _same(book: Tensor, packed: Tensor) -> bool:
    """Whether two books have the same elements, a NaN counting as equal to a NaN."""
    return bool(torch.isclose(book, packed, rtol=0, atol=0, equal_nan=True).all())
