"""Quantizers whose codebooks may stay packed, because their owner says that they do not change."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from vqvae_fast.nn.steps.kept_pack import KeptPack

if TYPE_CHECKING:
    from typing_extensions import Self


class Freezable(nn.Module):
    """A quantizer that can be frozen."""

    _kept_pack: KeptPack | None = None

    def check_freezable(self) -> None:
        """Raise ValueError if this quantizer cannot be frozen; every subclass defines it."""
        raise NotImplementedError

    def freeze(self, *, verify: bool = False) -> "Self":
        """Keep the codebooks packed in eval, because their owner says that they do not change.

        The first call in eval packs all books (:func:`vqvae_fast.pack`) and later calls do not,
        which on a CPU makes calls with few vectors several times as fast. The results are the same
        bits. The packed form has a copy of the codes; it is no part of the state_dict, and copies
        of this module make their own. ``train()`` gives its memory back. The next call in eval
        packs again after that, and after every change of the codes that torch counts:
        ``load_state_dict``, ``.to()``, another tensor, a write in place. torch does not count what
        is written through ``.data``, NumPy or a storage: call this method again after such a write.
        Training, calls that compute a gradient for the codes or the vectors, calls that are traced
        (torch.compile, torch.jit.trace), and calls in one of several processes (torch.distributed)
        are as before.

        Args:
            verify: compare all codes in every call, and raise RuntimeError if they were changed in
                a way that torch does not count. This is slow; it is meant for finding such writes.

        Returns:
            This module.

        Raises:
            ValueError: a call in eval is not one search of stored codes. The message says what the
                quantizer must do without.
        """
        self.check_freezable()
        self._kept_pack = KeptPack(verify)
        return self

    def unfreeze(self) -> "Self":
        """Undo :meth:`freeze`, and give the memory of the packed form back."""
        self._kept_pack = None
        return self

    def train(self, mode: bool = True) -> "Self":
        """As :meth:`torch.nn.Module.train`; the packed form of a frozen quantizer is dropped."""
        if mode and self._kept_pack is not None:
            self._kept_pack.drop()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Self":
        """As :meth:`torch.nn.Module._apply`, which ``.to()`` calls; the packed form is dropped."""
        if self._kept_pack is not None:
            self._kept_pack.drop()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def freeze(module: nn.Module, *, verify: bool = False) -> nn.Module:
    """Call :meth:`Freezable.freeze` of every quantizer in a module that has this method.

    These are :class:`vqvae_fast.ResidualVQ` and what contains one: GroupedResidualVQ, and
    SplitResidualVQ, which Mimi's checkpoints become. Others are left as they are.

    Args:
        module: a quantizer or a model.
        verify: as there.

    Returns:
        The same module.

    Raises:
        TypeError: module is no torch.nn.Module.
        ValueError: the module contains no such quantizer, or one that cannot be frozen. Nothing is
            frozen then.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    quantizers = [part for part in module.modules() if isinstance(part, Freezable)]
    if not quantizers:
        raise ValueError(
            f"freeze needs a module with a ResidualVQ in it, got {type(module).__name__}"
        )
    for quantizer in quantizers:
        quantizer.check_freezable()
    for quantizer in quantizers:
        quantizer.freeze(verify=verify)
    return module
