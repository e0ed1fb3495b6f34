"""Finds the quantizer in a checkpoint."""

import re
from collections.abc import Mapping
from os import PathLike
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from vqvae_fast.checkpoints.files import read_file, state_dict_in
from vqvae_fast.checkpoints.formats import FORMATS, Format
from vqvae_fast.checkpoints.formats.ours import PLACE, arguments_beside, read_ours, read_run
from vqvae_fast.checkpoints.live import copy_state, peer_class
from vqvae_fast.checkpoints.live.peers import peer_formats
from vqvae_fast.checkpoints.live.settings import settings_of
from vqvae_fast.checkpoints.stored import StoredQuantizer
from vqvae_fast.checkpoints.tensors import check_tensors
from vqvae_fast.checkpoints.weights import Weights, shortened
from vqvae_fast.nn import Freezable

_NONE: Mapping[str, Format] = MappingProxyType({})
_NAMED_LIKE_ONE = re.compile(r"(?:.*?\.)?\w*(?:quant|vq|codebook)\w*(?=\.)")


def load_quantizer(
    source: str | PathLike[str] | Mapping[str, Any] | nn.Module,
    prefix: str | None = None,
    **options: Any,
) -> nn.Module:
    """The quantizer in a checkpoint of this or another library, or in a live model, as our module.

    Known are vector-quantize-pytorch's VectorQuantize, ResidualVQ, GroupedResidualVQ, SimVQ and
    ResidualSimVQ; taming-transformers, latent diffusion, diffusers, LlamaGen and IBQ; EnCodec
    (audiocraft's and Hugging Face's); DAC; Mimi (Moshi's and Hugging Face's); the reference
    VQ-VAE; VQ-VAE-2 of rosinality; runs of ``vqvae-fast train``; files of ``vqvae-fast convert``.
    The modules in :mod:`vqvae_fast.checkpoints.formats` say what each becomes.

    A state dict holds weights and sizes, not how its module was configured. Arguments that it does
    not show have our class's defaults (for EnCodec, DAC and Mimi: the values that their authors
    trained with), unless ``options`` give them. Before you train the module further, give the
    arguments that it was made with (``beta``, ``legacy``, ``commitment_weight``,
    ``learnable_codebook``, ...). What the codes decode to does not depend on them.

    A live module knows its settings, and they are read from it:

    * all arguments of vector-quantize-pytorch 1.32's six classes, and their state
      (:func:`vqvae_fast.checkpoints.live.constructor_arguments`, ``copy_state``);
    * ``beta``, ``legacy`` and ``l2_norm``, or ``decay`` and ``eps``, of taming, latent diffusion,
      diffusers, LlamaGen, VQ-VAE-2, and of Chameleon, Janus and GLM-Image in transformers;
    * ``decay``, ``eps``, ``threshold_ema_dead_code``, ``kmeans_iters`` and ``commitment_weight`` of
      EnCodec and audiocraft; ``decay`` and the stages in use of Moshi; the stages in use of DAC;
      how the stages of EnCodec and DAC pass gradients on; the codecs of transformers but DAC do
      not learn (``freeze_codebook``).

    A module of another class, which only its weights show, is read as its state dict is. What a
    module does in training and ours does not is refused if the module is in train mode; to load
    its weights alone, hand over its ``state_dict()``.

    Args:
        source: a file (torch.save or .safetensors), or what it holds: a state dict, or a
            checkpoint with one under "state_dict", "model", "ema" or the like. Or a module: a
            quantizer of another library, or a model that holds one.
        prefix: what the names of the quantizer begin with, as in ``"first_stage_model.quantize"``.
            Needed only where there are several.
        **options: arguments for the constructor of our class, before those that were found.

    Returns:
        The module: from a checkpoint on the CPU, in float32 and in train mode, as any that was
        just made; from a live module a copy on its device, in its dtype and mode, whose parameters
        require a gradient if some of the live ones do.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file, or it is a folder.
        ValueError: no known format, several quantizers, weights that do not fit together or are
            not all known, weights that are no dense tensors of real numbers, codes that are NaN or
            Inf, or a file that holds more than tensors and plain values. Files are read with
            ``weights_only=True``: nothing in them is executed. Also a setting of a live module that
            ours does not have or that cannot be read back, and a module that is ours already.
        TypeError: our class does not know an option, or the source or the prefix is of another
            type.
        ModuleNotFoundError: reading .safetensors needs the package of this name.
    """
    if isinstance(source, nn.Module):
        return _load_live(source, prefix, options)
    return read_quantizer(source, prefix, **options).build()


def read_quantizer(
    source: str | PathLike[str] | Mapping[str, Any], prefix: str | None = None, **options: Any
) -> StoredQuantizer:
    """As :func:`load_quantizer` of a checkpoint: class, arguments and weights, not yet built."""
    if not isinstance(source, (str, PathLike, Mapping)):
        raise TypeError(
            "source must be a path, a state dict, a checkpoint or (for load_quantizer alone) a "
            f"module, got {type(source).__name__}"
        )
    _check_prefix(prefix)
    checkpoint = source if isinstance(source, Mapping) else read_file(source)
    stored = read_ours(checkpoint)
    if stored is not None:
        if prefix:
            raise ValueError(f"the file holds one quantizer and no prefixes, got {prefix!r}")
        return stored._replace(arguments={**stored.arguments, **options})
    stored = read_run(checkpoint)
    if stored is not None:
        place = PLACE.rstrip(".")
        if prefix and prefix.rstrip(".") != place:
            raise ValueError(f"the one quantizer of a run stands below {place}, got {prefix!r}")
        return stored._replace(arguments={**stored.arguments, **options})
    entries = state_dict_in(checkpoint)
    format, place = _choose(entries, prefix)
    weights = Weights(_tensors(entries, place), place)
    options = {**arguments_beside(checkpoint, place), **options}
    name, arguments, tensors = format.describe(weights, options)
    weights.check_empty()
    return StoredQuantizer(name, {**arguments, **options}, tensors)


def _load_live(source: nn.Module, prefix: str | None, options: dict[str, Any]) -> nn.Module:
    """The quantizer in a live model: its settings, its weights and its state."""
    _check_prefix(prefix)
    entries = source.state_dict()
    format, place = _choose(entries, prefix, peer_formats(source))
    live = source.get_submodule(place.rstrip("."))
    if isinstance(live, Freezable):
        raise ValueError(
            f"{place.rstrip('.') or 'the module'} is a {type(live).__name__} of vqvae_fast "
            "already; copy.deepcopy makes another one"
        )
    tensors = _tensors(entries, place)
    weights = Weights(tensors, place)
    options = {**settings_of(live, weights, options), **options}
    name, arguments, state = format.describe(weights, options)
    weights.check_empty()
    like = next((tensor for tensor in tensors.values() if tensor.is_floating_point()), None)
    ours = StoredQuantizer(name, {**arguments, **options}, state).build(like)
    if peer_class(live) is not None:
        copy_state(live, ours)
        return ours
    if not any(parameter.requires_grad for parameter in live.parameters()):
        ours.requires_grad_(False)
    return ours.train(live.training)


def _check_prefix(prefix: str | None) -> None:
    if not (prefix is None or isinstance(prefix, str)):
        raise TypeError(f"prefix must be a string or None, got {prefix!r}")


def _tensors(entries: Mapping[Any, Any], place: str) -> dict[str, Tensor]:
    """The tensors below a place; raises ValueError if there is anything else below it."""
    inside = {
        name: value
        for name, value in entries.items()
        # At the top of a checkpoint there are figures and options, too.
        if isinstance(name, str)
        and name.startswith(place)
        and (place or "." in name or isinstance(value, Tensor))
    }
    check_tensors(inside)
    return {name: tensor.detach() for name, tensor in inside.items()}


def _choose(
    entries: Mapping[Any, Any], prefix: str | None, known: Mapping[str, Format] = _NONE
) -> tuple[Format, str]:
    """The format, and what the names of its weights begin with.

    Args:
        entries: the state dict.
        prefix: as for :func:`load_quantizer`.
        known: formats of places that need not be found.
    """
    below = "" if not prefix else prefix.rstrip(".") + "."
    names = [name for name in entries if isinstance(name, str)]
    inside = [name[len(below) :] for name in names if name.startswith(below)]
    fixed = {place[len(below) :]: at for place, at in known.items() if place.startswith(below)}
    others = [name for name in inside if not name.startswith(tuple(fixed))]
    found = fixed | _find(others)
    if len(found) > 1:
        places = [(below + place).rstrip(".") or "''" for place in found]
        raise ValueError(
            f"there are several quantizers, choose one by its prefix: {shortened(places)}"
        )
    if not found:
        raise ValueError(_unknown(entries, inside, prefix))
    ((place, format),) = found.items()
    if prefix:
        # The prefix names all that is below it, so the quantizer must be everything there.
        beside = [below + name for name in inside if not name.startswith(place)]
        if beside:
            raise ValueError(
                f"below {prefix!r} there is more than the quantizer {below + place}: "
                f"{shortened(beside)}"
            )
    return format, below + place


def _unknown(entries: Mapping[Any, Any], inside: list[str], prefix: str | None) -> str:
    """The message for a checkpoint without a known quantizer."""
    names = [
        name if isinstance(name, str) else f"{name!r} (not a string but {type(name).__name__})"
        for name in entries
    ]
    if not names:
        what = "in an empty checkpoint"
    elif prefix and not inside:
        what = f"below {prefix!r}, for nothing is there; the keys are: {shortened(names, 6)}"
    elif prefix:
        what = f"by the keys below {prefix!r}: {shortened(inside, 6)}"
    elif not any(isinstance(value, Tensor) for value in entries.values()):
        what = f"in a checkpoint without tensors; its keys are: {shortened(names, 6)}"
    else:
        what = f"by the keys: {shortened(names, 6)}"
    named = {match[0]: None for match in map(_NAMED_LIKE_ONE.match, inside) if match}
    hint = f" (named like one, but of no known layout: {shortened(list(named))})" if named else ""
    known = "; ".join(format.title for format in FORMATS)
    return f"no quantizer is known {what}{hint}. Known are: {known}"


def _find(names: list[str]) -> dict[str, Format]:
    """Every place that looks like a quantizer; the first format that knows a place has it."""
    found: dict[str, Format] = {}
    for name in names:
        for format in FORMATS:
            match = format.anchor.fullmatch(name)
            if match:
                place = match["prefix"]
                rank = FORMATS.index(format)
                if place not in found or rank < FORMATS.index(found[place]):
                    found[place] = format
                break
    return found
