"""Quantizers whose codebooks may stay packed, because their owner says that they do not change."""

from typing import TYPE_CHECKING

from torch import nn

from vqvae_fast.nn.codebook.kept_pack import KeepsPack

if TYPE_CHECKING:
    from typing_extensions import Self


class Freezable(nn.Module):
    """A quantizer, or a module that is made of quantizers."""

    def pack_keepers(self) -> list[KeepsPack]:
        """The modules in this one that keep packs for it, those of its parts unless overridden.

        Raises:
            ValueError: calls in eval do not search stored codes. The message says what the
                quantizer must do without.
        """
        return _keepers_of_parts(self)

    def freeze(self, *, verify: bool = False, compose_projections: bool = False) -> "Self":
        """Keep the codebooks packed in eval, because their owner says that they do not change.

        The first call in eval packs the books (:func:`vqvae_fast.pack`) and later calls do not,
        which on a CPU makes calls with few vectors several times as fast. The results are the same
        bits. The packed form has a copy of the codes, or of what the search compares in their
        place: their directions (``cosine_search``), what a network makes of them (``vq_bridge``,
        :class:`SimVQ`). It is no part of the state_dict, and copies of this module make their own.
        :attr:`packed_nbytes` is its memory, which ``train()`` gives back.

        The next call in eval packs again after that, and after every change that torch counts, of
        the codes and of the parameters and buffers that they are made from: ``load_state_dict``,
        ``.to()``, another tensor, a write in place. torch does not count what is written through
        ``.data``, NumPy or a storage, nor what a fused optimizer writes after the gradients have
        been set to None or in another way than by a backward pass, nor what else the forward pass
        of a network depends on: call this method again after such a change.

        Other calls are as before: training, calls that compute a gradient for the codes or find one
        that ``zero_grad()`` has not removed (an optimizer's step may follow), calls with
        ``topk``, beams or a ``codebook_transform_fn``, calls that are traced (torch.compile,
        torch.jit.trace, torch.export), calls with vectors of a wider dtype than the codes, and
        those in one of several processes (torch.distributed). A ResidualVQ whose stages only find
        nearest codes packs all books in one object; there calls with a ``mask`` or in another dtype
        than float32 are as before, too.

        Args:
            verify: compare all codes in every call, and raise RuntimeError if they were changed in
                a way that torch does not count. This is slow and keeps a copy of all codes; it is
                meant for finding such writes.
            compose_projections: where each stage of a ResidualVQ projects the vectors and its codes
                (``project_per_stage``, as in DAC), keep the products of these projections instead,
                so that a call needs one product before all stages and one behind them, and is
                several times as fast. The projections of the two halves of a SplitResidualVQ are
                joined, too. This is the exception to "the same bits": the vectors that
                are compared with the codes, and the sum of what the stages give, are rounded
                otherwise. Every code is the nearest to the vector as it was rounded here, so it
                differs from that of the module as it was only where rounding decides between codes
                (the stages behind such a code differ with it). Neither of the two is nearer to
                exact arithmetic. The products follow changes as the packed books do, those of the
                projections' weights and biases, too; with ``verify`` those are compared as well.
                They serve calls of float32 vectors without gradients (``torch.no_grad()``), a mask
                or autocast; other calls are as without this argument, and so are quantizers
                without such projections.

        Returns:
            This module.

        Raises:
            ValueError: calls in eval do not search stored codes (``implicit_neural_codebook``,
                beams), or the codes are divided over processes. The message says what the quantizer
                must do without.
        """
        keepers = self.pack_keepers()
        self.unfreeze()
        for keeper in keepers:
            keeper.keep_packed(verify)
        if compose_projections:
            for keeper in _all_keepers(self):
                keeper.keep_composed(verify)
        return self

    def unfreeze(self) -> "Self":
        """Undo :meth:`freeze`, and give the memory of the packed form back."""
        for keeper in _all_keepers(self):
            keeper.keep_no_pack()
        return self

    @property
    def packed_nbytes(self) -> int:
        """The memory that is kept packed or composed now; 0 before the first call in eval."""
        return sum(kept.nbytes for keeper in _all_keepers(self) for kept in keeper.kept_forms())


def freeze(
    module: nn.Module, *, verify: bool = False, compose_projections: bool = False
) -> nn.Module:
    """Call :meth:`Freezable.freeze` of every quantizer in a module.

    Args:
        module: a quantizer or a model.
        verify: as there.
        compose_projections: as there. Codes may then differ where rounding decides between them.

    Returns:
        The same module.

    Raises:
        TypeError: module is no torch.nn.Module.
        ValueError: the module contains no quantizer of this package, or one that cannot be frozen.
            Nothing is frozen then.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    quantizers = _outermost(module)
    if not quantizers:
        raise ValueError(
            "freeze needs a module with a quantizer of vqvae_fast in it, "
            f"got {type(module).__name__}"
        )
    for quantizer in quantizers:
        quantizer.pack_keepers()  # raises before anything is frozen
    for quantizer in quantizers:
        quantizer.freeze(verify=verify, compose_projections=compose_projections)
    return module


def _outermost(module: nn.Module) -> list[Freezable]:
    """Returns the module itself if it can be frozen, otherwise those of its parts that can."""
    if isinstance(module, Freezable):
        return [module]
    return [found for part in module.children() for found in _outermost(part)]


def _keepers_of_parts(module: nn.Module) -> list[KeepsPack]:
    parts = [found for part in module.children() for found in _outermost(part)]
    return list(dict.fromkeys(keeper for part in parts for keeper in part.pack_keepers()))


def _all_keepers(module: nn.Module) -> list[KeepsPack]:
    return [part for part in module.modules() if isinstance(part, KeepsPack)]
