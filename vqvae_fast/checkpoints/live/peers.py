"""The quantizers of vector-quantize-pytorch in a live model, each as a format of its own."""

import copy
from typing import Any

from torch import nn

from vqvae_fast.checkpoints.formats.format import Description, Format, anchor
from vqvae_fast.checkpoints.live.vqp import constructor_arguments, peer_class
from vqvae_fast.checkpoints.weights import Weights


def peer_formats(source: nn.Module, place: str = "") -> dict[str, Format]:
    """The outermost of them, by what the names of their weights begin with.

    Args:
        source: a model, or a quantizer itself.
        place: what the names of the source's own weights begin with.
    """
    name = peer_class(source)
    if name is not None:
        return {place: _format(name, source)}
    found: dict[str, Format] = {}
    for child, part in source.named_children():
        found |= peer_formats(part, f"{place}{child}.")
    return found


def _format(name: str, module: nn.Module) -> Format:
    """The format of one live module, whose arguments are read from the module."""

    def describe(weights: Weights, options: dict[str, Any]) -> Description:
        # A copy: the arguments contain modules that the live one was given.
        return name, copy.deepcopy(constructor_arguments(module)), weights.take_all()

    return Format(f"a live {name} of vector-quantize-pytorch", anchor(""), describe)
