"""Finds the quantizer in a checkpoint."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from torch import Tensor, nn

from vqvae_fast.checkpoints.files import read_file, tensors_of
from vqvae_fast.checkpoints.formats import FORMATS, Format
from vqvae_fast.checkpoints.formats.ours import arguments_beside, read_ours
from vqvae_fast.checkpoints.stored import StoredQuantizer
from vqvae_fast.checkpoints.weights import Weights, shortened


def load_quantizer(
    source: str | PathLike[str] | Mapping[str, Any], prefix: str | None = None, **options: Any
) -> nn.Module:
    """The quantizer in a checkpoint of this or another library, as our module.

    Known are vector-quantize-pytorch's VectorQuantize, ResidualVQ, GroupedResidualVQ, SimVQ and
    ResidualSimVQ; taming-transformers, latent diffusion, diffusers, LlamaGen and IBQ; EnCodec
    (audiocraft's and Hugging Face's); DAC; Mimi (Moshi's and Hugging Face's); the reference
    VQ-VAE; VQ-VAE-2 of rosinality; runs of ``vqvae-fast train``; files of ``vqvae-fast convert``.
    The modules in :mod:`vqvae_fast.checkpoints.formats` say what each becomes.

    A state dict holds weights and sizes, not how its module was configured. What cannot be seen
    in it is as our class has it by default (for EnCodec, DAC and Mimi: as their authors trained),
    or as ``options`` say: give the arguments that the module was made with (``beta``, ``legacy``,
    ``commitment_weight``, ``learnable_codebook``, ...) before you train it further. What the codes
    decode to does not depend on them.

    Args:
        source: a file (torch.save or .safetensors), or what it holds: a state dict, or a
            checkpoint with one under "state_dict", "model", "ema" or the like.
        prefix: what the names of the quantizer begin with, as in ``"first_stage_model.quantize"``.
            Needed only where there are several.
        **options: arguments for the constructor of our class, before those that were found.

    Returns:
        The module, on the CPU and in train mode as any that was just made.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no known format, several quantizers, weights that do not fit together or are
            not all known, or a file that holds more than tensors and plain values. Files are read
            with ``weights_only=True``: nothing in them is executed.
        TypeError: our class does not know an option, or the source is neither.
        ModuleNotFoundError: reading .safetensors needs the package of this name.
    """
    return read_quantizer(source, prefix, **options).build()


def read_quantizer(
    source: str | PathLike[str] | Mapping[str, Any], prefix: str | None = None, **options: Any
) -> StoredQuantizer:
    """As :func:`load_quantizer`, but the class, its arguments and its weights, not yet built."""
    if not isinstance(source, (str, PathLike, Mapping)):
        raise TypeError(
            f"source must be a path, a state dict or a checkpoint, got {type(source).__name__}"
        )
    checkpoint = source if isinstance(source, Mapping) else read_file(source)
    stored = read_ours(checkpoint)
    if stored is not None:
        if prefix is not None:
            raise ValueError(f"the file holds one quantizer and no prefixes, got {prefix!r}")
        return stored._replace(arguments={**stored.arguments, **options})
    state = tensors_of(checkpoint)
    format, place = _choose(state, prefix)
    weights = Weights(state, place)
    options = {**arguments_beside(checkpoint, place), **options}
    name, arguments, tensors = format.describe(weights, options)
    weights.check_empty()
    return StoredQuantizer(name, {**arguments, **options}, tensors)


def _choose(state: dict[str, Tensor], prefix: str | None) -> tuple[Format, str]:
    """The format, and what the names of its weights begin with."""
    below = "" if not prefix else prefix.rstrip(".") + "."
    inside = [name[len(below) :] for name in state if name.startswith(below)]
    found = _find(inside)
    if len(found) > 1:
        places = [(below + place).rstrip(".") or "''" for place in found]
        raise ValueError(
            f"there are several quantizers, choose one by its prefix: {shortened(places)}"
        )
    if not found:
        where = f" below {prefix!r}" if prefix else ""
        known = "; ".join(format.title for format in FORMATS)
        keys = shortened(inside or list(state), 6)
        raise ValueError(f"no quantizer is known by the keys{where}: {keys}. Known are: {known}")
    ((place, format),) = found.items()
    if prefix:
        # Whoever names a place means all that is there.
        beside = [below + name for name in inside if not name.startswith(place)]
        if beside:
            raise ValueError(
                f"below {prefix!r} there is more than the quantizer {below + place}: "
                f"{shortened(beside)}"
            )
    return format, below + place


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
