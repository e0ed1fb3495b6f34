"""Searches for the replacements: in books that are kept packed while they do not change."""

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vqvae_fast import functional
from vqvae_fast.nn.codebook.kept_pack import KeptForm, KeptPack
from vqvae_fast.nn.drop_in.composed_stages import Composable, ComposedStages, compose
from vqvae_fast.packed import PackedCodebook

# Beside the modules, so that neither their attributes nor their pickles know of it.
_packs: WeakKeyDictionary[nn.Module, KeptPack] = WeakKeyDictionary()
_compositions: WeakKeyDictionary[nn.Module, KeptForm[ComposedStages]] = WeakKeyDictionary()
_times_forgotten: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def nearest(module: nn.Module, z: Tensor, codebook: Tensor) -> Tensor:
    """Return the nearest codes of vectors, for the quantizer that a module is.

    Args:
        module: in eval its codebook is kept packed.
        z: [..., D]. If its dtype is not that of the codebook, both are taken in the wider one.
        codebook: [K, D]. It may be a tensor that the module has, or one that is made of such
            tensors and is the same object in each call. Use :func:`nearest_made` for others.

    Returns:
        int64 [...].
    """
    return nearest_made(module, z, [codebook], lambda: codebook)


def nearest_made(
    module: nn.Module, z: Tensor, sources: Sequence[Tensor], make: Callable[[], Tensor]
) -> Tensor:
    """As :func:`nearest`, for a codebook [K, D] that ``make`` makes of the tensors ``sources``."""
    z = z.detach()
    codebook: Tensor | PackedCodebook | None = packed_books(module, sources, make)
    if codebook is None or torch.promote_types(z.dtype, codebook.dtype) != codebook.dtype:
        codebook = make().detach()
        codebook = codebook.to(torch.promote_types(z.dtype, codebook.dtype))
    return functional.nearest_code(z.to(codebook.dtype), codebook).indices


def quantize_made(
    module: nn.Module,
    z: Tensor,
    sources: Sequence[Tensor],
    make: Callable[[], Tensor],
    *,
    commitment_weight: float,
    codebook_weight: float,
) -> functional.Quantized:
    """As :func:`vqvae_fast.quantize`, for a codebook that ``make`` makes of some tensors.

    Args:
        module: in eval its codebook is kept packed, unless a gradient of it is computed.
        z: [..., D], in the codebook's dtype.
        sources: what the codebook is made of, each the same object in each call.
        make: makes the codebook [K, D].
        commitment_weight: the weight of mean((z - sg[q])^2).
        codebook_weight: the weight of mean((sg[z] - q)^2).
    """
    codebook: Tensor | PackedCodebook | None = packed_books(module, sources, make)
    return functional.quantize(
        z,
        make() if codebook is None else codebook,
        commitment_weight=commitment_weight,
        codebook_weight=codebook_weight,
    )


def residual_nearest(
    module: nn.Module,
    z: Tensor,
    books: Sequence[Tensor],
    stages: int,
    codebooks: Sequence[nn.Module] = (),
) -> tuple[Tensor, Tensor]:
    """Return the codes of residual VQ and their sum, without a gradient.

    Args:
        module: in eval its books are kept packed.
        z: [..., D], float32.
        books: the codebooks [K, D] of all stages; each the same object in each call.
        stages: how many of them are used.
        codebooks: the modules that have the books, if they are accelerated themselves. Where one of
            them trains, it writes to its book, and the books are packed anew.

    Returns:
        indices int64 [..., stages], quantized [..., D].
    """
    # A compiler cannot trace the count, and packs nothing.
    traced = torch.compiler.is_compiling()
    forgotten = () if traced else [times_forgotten(codebook) for codebook in codebooks]
    packed = packed_books(module, books, lambda: torch.stack(list(books)), forgotten)
    if packed is None:
        return functional.residual_nearest_code(z.detach(), torch.stack(list(books[:stages])))
    return functional.residual_nearest_code(z.detach(), packed, num_quantizers=stages)


def forget(module: nn.Module) -> None:
    """Give the memory of what is kept for a module back; the next search makes it anew.

    A recipe calls it after a method that writes codes in a way that torch does not count.
    """
    _packs.pop(module, None)
    _compositions.pop(module, None)
    _times_forgotten[module] = times_forgotten(module) + 1


def times_forgotten(module: nn.Module) -> int:
    """Return how often :func:`forget` was called: books of several modules are then packed anew."""
    return _times_forgotten.get(module, 0)


def packed_books(
    module: nn.Module,
    sources: Sequence[Tensor],
    make: Callable[[], Tensor],
    made_by: Sequence[object] = (),
) -> PackedCodebook | None:
    """Return the books that ``make`` makes of the tensors ``sources``, packed for a module.

    Args:
        module: the books are kept for it.
        sources: as for :meth:`KeptPack.of`.
        make: makes the books, [K, D] or [H, K, D].
        made_by: what else they depend on, as for :meth:`KeptPack.of`.

    Returns:
        None in training, and where a change of them could not be seen.
    """
    if not _keeps(module):
        return None
    return _packs.setdefault(module, KeptPack()).of(sources, make, made_by)


def composed(
    module: nn.Module,
    sources: Sequence[Tensor],
    stages: Callable[[], Sequence[Composable]],
    made_by: Sequence[object] = (),
) -> ComposedStages | None:
    """Return the stages of a residual quantizer with their projections composed.

    Args:
        module: they are kept for it.
        sources: the tensors that the stages are made of.
        stages: makes the stages.
        made_by: what else they depend on, as for :meth:`KeptForm.made`.

    Returns:
        None as for :func:`packed_books`.
    """
    if not _keeps(module):
        return None
    kept: KeptForm[ComposedStages] = _compositions.setdefault(module, KeptForm())
    return kept.made(sources, lambda: compose(stages()), lambda: sources, made_by)


def _keeps(module: nn.Module) -> bool:
    """Whether something may be kept for a module in this call."""
    if torch.compiler.is_compiling():
        return False
    if module.training:
        # A training step may write to the codes in a way that torch does not count.
        forget(module)
        return False
    return True
