"""The packed form of a module's codes, which is kept as long as the codes do not change."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from vqvae_fast.distributed import is_distributed
from vqvae_fast.packed import PackedCodebook, pack

if TYPE_CHECKING:
    from typing_extensions import Self


class _Kept(NamedTuple):
    """Packed books, and what they were made from when they were packed.

    Attributes:
        packed: the books.
        seen: of each source, where it lay and how often it had been written to.
        made_by: the functions and modules that made the books of the sources.
        storages: while they are held, no other tensor can lie where the sources lay.
    """

    packed: PackedCodebook
    seen: list[tuple[Any, ...]]
    made_by: Sequence[object]
    storages: list[Any]


class KeptPack:
    """Packs the books of a module at the first search, and again after a change.

    Every search compares where the tensors lie that the books are made from, and how often they
    were written to. So the books are packed anew if a tensor was replaced, loaded, moved, cast or
    changed in place. A write that torch does not count (through ``.data`` or NumPy) cannot be seen:
    ``verify`` compares all elements, too.

    Args:
        verify: raise RuntimeError in a search if the books differ from the packed ones although
            torch counted no change. This makes all books, so it is for looking for such writes.
    """

    def __init__(self, verify: bool = False):
        self.verify = verify
        # One attribute, because threads may search at once: each reads it in one step.
        self._kept: _Kept | None = None

    def of(
        self,
        sources: Sequence[Tensor],
        books: Callable[[], Tensor],
        made_by: Sequence[object] = (),
    ) -> PackedCodebook | None:
        """Return the books packed.

        Args:
            sources: the tensors that the books are made from.
            books: makes the books, [K, D] or [H, K, D].
            made_by: the functions and modules by which it makes them; others, compared by identity,
                make other books.

        Returns:
            None where a change could not be seen: while the call is traced, for tensors of
            inference mode, and beside other processes, whose collectives write to buffers without
            being counted. None also for tensors that hold no numbers, for calls that compute a
            gradient of the books, and while the sources have gradients: then an optimizer may write
            to them, and torch does not count what fused optimizers write. Nothing is packed while a
            CUDA graph is captured, because what it records does not run.
        """
        if _is_traced() or is_distributed() or not all(map(_can_be_kept, sources)):
            return None
        is_learning = torch.is_grad_enabled() and any(source.requires_grad for source in sources)
        if is_learning or any(source.is_leaf and source.grad is not None for source in sources):
            self.drop()
            return None
        seen = [
            (part.data_ptr(), part._version, part.dtype, part.device, part.shape, part.stride())
            for part in sources
        ]
        kept = self._kept
        if kept is None or seen != kept.seen or made_by != kept.made_by:
            self.drop()
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                return None
            with torch.no_grad():
                packed = pack(books())
            storages = [source.untyped_storage() for source in sources]
            kept = self._kept = _Kept(packed, seen, made_by, storages)
        elif self.verify and not self._is_up_to_date(kept, books):
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

    @staticmethod
    def _is_up_to_date(kept: _Kept, books: Callable[[], Tensor]) -> bool:
        """Whether the books have the packed elements, a NaN counting as equal to a NaN."""
        with torch.no_grad():
            same = torch.isclose(books(), kept.packed.codebook, rtol=0, atol=0, equal_nan=True)
        return bool(same.all())

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles have no packed form; they make their own."""
        return KeptPack, (self.verify,)


class KeepsPack(nn.Module):
    """A module with codes, which it may keep packed in eval."""

    _kept_pack: KeptPack | None = None

    def keep_packed(self, verify: bool) -> None:
        """Keep the codes packed from now on; ``verify`` as for :class:`KeptPack`."""
        self._kept_pack = KeptPack(verify)

    def keep_no_pack(self) -> None:
        """Keep the codes packed no longer."""
        self._kept_pack = None

    def train(self, mode: bool = True) -> "Self":
        """As :meth:`torch.nn.Module.train`; the packed form is dropped for training."""
        if mode and self._kept_pack is not None:
            self._kept_pack.drop()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Self":
        """As :meth:`torch.nn.Module._apply`, which ``.to()`` calls; the packed form is dropped."""
        if self._kept_pack is not None:
            self._kept_pack.drop()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def tensors_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Return the parameters and buffers that modules have themselves, not those of their parts."""
    return [
        tensor
        for module in modules
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    ]


def _is_traced() -> bool:
    """Whether torch.compile, torch.jit.trace or make_fx records the call."""
    if torch.compiler.is_compiling():
        return True
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return True
    return _get_current_dispatch_mode() is not None


def _can_be_kept(source: Tensor) -> bool:
    """Whether a tensor holds numbers whose changes torch counts."""
    holds_numbers = not (source.is_meta or isinstance(source, FakeTensor))
    return holds_numbers and not source.is_inference() and not is_functorch_wrapped_tensor(source)
