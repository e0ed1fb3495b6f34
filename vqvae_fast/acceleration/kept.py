"""Searches for the replacements: in books that are kept packed while they do not change."""

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vqvae_fast import functional
from vqvae_fast.autocast import is_autocast
from vqvae_fast.nn.codebook.kept_pack import KeptForm, KeptPack
from vqvae_fast.nn.drop_in.composed_stages import Composable, ComposedStages, compose
from vqvae_fast.packed import PackedCodebook

# Beside the modules, so that neither their attributes nor their pickles know of it.
_packs: WeakKeyDictionary[nn.Module, KeptPack] = WeakKeyDictionary()
_compositions: WeakKeyDictionary[nn.Module, KeptForm[ComposedStages]] = WeakKeyDictionary()
_CAST_BY_AUTOCAST = {torch.float32, torch.bfloat16, torch.float16}
_times_forgotten: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


class Unserved(Exception):  # noqa: N818
    """A search that is not understood: the model's own method runs in the replacement's place."""


def check_served(z: Tensor, codebook: Tensor | PackedCodebook) -> None:
    """Raise :class:`Unserved` unless vectors [..., D] can be compared with codes [..., K, D].

    Vectors and codes of different dtypes are served under autocast, where models cast them.
    """
    dtypes = {z.dtype, codebook.dtype}
    if z.shape[-1:] != codebook.shape[-1:]:
        problem = "sizes"
    elif z.device != codebook.device:
        problem = "devices"
    elif len(dtypes) > 1 and not (dtypes <= _CAST_BY_AUTOCAST and is_autocast(z.device.type)):
        problem = "dtypes"
    else:
        return
    raise Unserved(f"the {problem} of vectors and codes differ, so the model's own method must run")


def check_dimensions(z: Tensor, number: int) -> None:
    """Raise :class:`Unserved` unless a tensor has so many dimensions."""
    if z.dim() != number:
        raise Unserved(f"{z.dim()} dimensions, not {number}, so the model's own method must run")


def nearest(module: nn.Module, z: Tensor, codebook: Tensor) -> Tensor:
    """Return the nearest codes of vectors, for the quantizer that a module is.

    Args:
        module: in eval its codebook is kept packed.
        z: [..., D]. Under autocast its dtype may differ from that of the codebook; both are then
            taken in the wider one.
        codebook: [K, D]. It may be a tensor that the module has, or one that is made of such
            tensors and is the same object in each call. Use :func:`nearest_made` for others.

    Returns:
        int64 [...].

    Raises:
        Unserved: the sizes, dtypes or devices differ. In a replacement leave it alone: the model's
            original method then runs, and says what is wrong.
    """
    return nearest_made(module, z, [codebook], lambda: codebook)


def nearest_made(
    module: nn.Module, z: Tensor, sources: Sequence[Tensor], make: Callable[[], Tensor]
) -> Tensor:
    """As :func:`nearest`, for a codebook [K, D] that ``make`` makes of the tensors ``sources``."""
    z = z.detach()
    codebook: Tensor | PackedCodebook | None = packed_books(module, sources, make)
    if codebook is not None:
        check_served(z, codebook)
    if codebook is None or torch.promote_types(z.dtype, codebook.dtype) != codebook.dtype:
        codebook = make().detach()
        check_served(z, codebook)
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
    packed = packed_books(module, sources, make)
    codebook = make() if packed is None else packed
    check_served(z, codebook)
    return functional.quantize(
        z,
        codebook,
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
    check_served(z, books[0])
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
