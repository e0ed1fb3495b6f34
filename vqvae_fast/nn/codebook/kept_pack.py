"""What is made of a module's tensors, such as packed codes, and kept until the tensors change."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from vqvae_fast.distributed import is_distributed
from vqvae_fast.nn.codebook.changes import describe
from vqvae_fast.packed import PackedCodebook, pack

if TYPE_CHECKING:
    from typing_extensions import Self


class HasBytes(Protocol):
    """What was made of tensors, and takes memory."""

    @property
    def nbytes(self) -> int:
        """The memory that it holds."""


Form = TypeVar("Form", bound=HasBytes)


class _Kept(NamedTuple):
    """A form, and what it was made from when it was made.

    Attributes:
        form: the form.
        seen: of each source, which object it was, where it lay, and how often it had been written
            to.
        made_by: the functions and modules that made the form of the sources.
        sources: while they are held, no other tensor can be taken for one of them.
        storages: while they are held, no other tensor can lie where the sources lay.
        as_read: copies of what it was made from, to verify it.
    """

    form: Any
    seen: object
    made_by: Sequence[object]
    sources: list[Tensor]
    storages: list[Any]
    as_read: list[Tensor]

    @property
    def nbytes(self) -> int:
        return int(self.form.nbytes) + sum(part.nbytes for part in self.as_read)


class KeptForm(Generic[Form]):
    """Keeps what is made of the tensors of a module, and makes it again after a change.

    Every call compares where the tensors lie, and how often they were written to. So the form is
    made anew if a tensor was replaced, loaded, moved, cast or changed in place. A write that torch
    does not count (through ``.data`` or NumPy) cannot be seen: ``verify`` compares all elements,
    too.

    Args:
        verify: raise RuntimeError if what the form is made from has changed although torch counted
            no change. This reads all of it, so it is for looking for such writes.
    """

    def __init__(self, verify: bool = False):
        self.verify = verify
        # One attribute, because threads may search at once: each reads it in one step.
        self._kept: _Kept | None = None

    def made(
        self,
        sources: Sequence[Tensor],
        make: Callable[[], Form],
        read: Callable[[], Sequence[Tensor]],
        made_by: Sequence[object] = (),
    ) -> Form | None:
        """Return the form.

        Args:
            sources: the tensors that it is made from.
            make: makes it.
            read: gives what ``make`` reads, the sources or what is computed from them.
            made_by: the functions and modules by which it is made; others, compared by identity,
                make another form.

        Returns:
            None where a change could not be seen: while the call is traced, for tensors of
            inference mode, and beside other processes, whose collectives write to buffers without
            being counted. None also for tensors that hold no numbers, for calls that compute a
            gradient of the sources, and while they have gradients: then an optimizer may write
            to them, and torch does not count what fused optimizers write. Nothing is made while a
            CUDA graph is captured, because what it records does not run.
        """
        if _is_traced() or is_distributed():
            return None
        described = describe(sources)
        if described is None:
            return None
        if described.has_gradient or (described.requires_grad and torch.is_grad_enabled()):
            self.drop()
            return None
        kept = self._kept
        if kept is None or described.seen != kept.seen or made_by != kept.made_by:
            self.drop()
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                return None
            # What is made must not be of inference mode because the first call happens to be.
            with torch.inference_mode(False), torch.no_grad():
                form = make()
                as_read = [part.clone() for part in read()] if self.verify else []
            storages = [source.untyped_storage() for source in sources]
            kept = self._kept = _Kept(
                form, described.seen, made_by, list(sources), storages, as_read
            )
        elif self.verify and not _are_same(kept.as_read, read):
            raise RuntimeError(
                "the codes of a frozen quantizer were changed in a way that torch does not count, "
                "as through .data, NumPy or a fused optimizer: call freeze() again after it"
            )
        found: Form = kept.form
        return found

    @property
    def nbytes(self) -> int:
        """The memory of the form, with the copies to verify it; 0 if there is none now."""
        kept = self._kept
        return 0 if kept is None else kept.nbytes

    def drop(self) -> None:
        """Give the memory back; the next call makes the form again."""
        self._kept = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles have no form; they make their own."""
        return type(self), (self.verify,)


class KeptPack(KeptForm[PackedCodebook]):
    """Packs the books of a module at the first search, and again after a change."""

    def of(
        self,
        sources: Sequence[Tensor],
        books: Callable[[], Tensor],
        made_by: Sequence[object] = (),
    ) -> PackedCodebook | None:
        """Return the books packed; the other arguments are those of :meth:`KeptForm.made`.

        Args:
            sources: the tensors that the books are made from.
            books: makes the books, [K, D] or [H, K, D].
            made_by: the functions and modules by which it makes them.
        """
        return self.made(sources, lambda: pack(books()), lambda: (books(),), made_by)


class KeepsPack(nn.Module):
    """A module with codes, which it may keep packed in eval."""

    _kept_pack: KeptPack | None = None

    def keep_packed(self, verify: bool) -> None:
        """Keep the codes packed from now on; ``verify`` as for :class:`KeptForm`."""
        self._kept_pack = KeptPack(verify)

    def keep_composed(self, verify: bool) -> None:
        """Keep the projections of the module's stages composed, if its stages have projections."""

    def keep_no_pack(self) -> None:
        """Keep nothing any longer."""
        self._kept_pack = None

    def kept_forms(self) -> list[KeptForm[Any]]:
        """What the module keeps."""
        return [] if self._kept_pack is None else [self._kept_pack]

    def drop_kept_forms(self) -> None:
        """Give their memory back; the next call in eval makes them again."""
        for kept in self.kept_forms():
            kept.drop()

    def train(self, mode: bool = True) -> "Self":
        """As :meth:`torch.nn.Module.train`; what is kept is dropped for training."""
        if mode:
            self.drop_kept_forms()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Self":
        """As :meth:`torch.nn.Module._apply`, which ``.to()`` calls; what is kept is dropped."""
        self.drop_kept_forms()
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


def _are_same(as_read: list[Tensor], read: Callable[[], Sequence[Tensor]]) -> bool:
    """Whether what is read has the elements that it had, a NaN counting as equal to a NaN."""
    with torch.no_grad():
        return all(
            bool(torch.isclose(new, old, rtol=0, atol=0, equal_nan=True).all())
            for new, old in zip(read(), as_read, strict=True)
        )
