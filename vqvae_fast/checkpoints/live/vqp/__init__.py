"""Reads live modules of vector-quantize-pytorch 1.32: one file for each class, or for two."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vqvae_fast import nn as ours
from vqvae_fast.checkpoints.live.attributes import unreadable
from vqvae_fast.checkpoints.live.classes import library_class, overridden
from vqvae_fast.checkpoints.live.vqp.parts import PACKAGE
from vqvae_fast.checkpoints.live.vqp.random_projection_quantizer import random_projection_quantizer
from vqvae_fast.checkpoints.live.vqp.residual_vq import grouped_residual_vq, residual_vq
from vqvae_fast.checkpoints.live.vqp.sim_vq import residual_sim_vq, sim_vq
from vqvae_fast.checkpoints.live.vqp.state import copy_state
from vqvae_fast.checkpoints.live.vqp.vector_quantize import vector_quantize

__all__ = ["constructor_arguments", "copy_state", "peer_class"]

_READERS: dict[str, Callable[[nn.Module], dict[str, Any]]] = {
    "VectorQuantize": vector_quantize,
    "ResidualVQ": residual_vq,
    "GroupedResidualVQ": grouped_residual_vq,
    "SimVQ": sim_vq,
    "ResidualSimVQ": residual_sim_vq,
    "RandomProjectionQuantizer": random_projection_quantizer,
}
# Buffers that the library has only after the first batch, and ours always.
_LATER = ("batch_mean", "batch_variance")


def peer_class(module: object) -> str | None:
    """The name of the class of vector-quantize-pytorch that an object is, or inherits from.

    Returns:
        VectorQuantize, ResidualVQ, GroupedResidualVQ, SimVQ, ResidualSimVQ or
        RandomProjectionQuantizer, which are the names of our classes, too; None for anything else.
    """
    kind = _class_of(module)
    return None if kind is None else kind.__qualname__


def constructor_arguments(module: nn.Module) -> dict[str, Any]:
    """The arguments that make a quantizer of ours as a live one of vector-quantize-pytorch 1.32.

    ``getattr(vqvae_fast, peer_class(module))(**constructor_arguments(module))`` has the same
    parameters and buffers. After :func:`copy_state` it computes the same in eval and in training,
    but for what docs/drop-in.md lists. The arguments are read from the attributes that the live
    module uses, so a value that was set after it was made counts if it has an effect there.

    Modules that the live one was given (``vq_bridge``, ``codebook_transform``) are in the result
    themselves, not copies. ``in_place_codebook_optimizer`` makes an optimizer of the same class and
    settings, without its state.

    Args:
        module: of one of the six classes that :func:`peer_class` names, or of a subclass that
            overrides none of its methods but the constructor.

    Raises:
        TypeError: it is of another class.
        ValueError: names the setting that ours does not have, or that cannot be read back: a
            method, a function or a part of the module that was replaced, stages that differ, an
            optimizer whose class does not show its settings.
    """
    kind = _class_of(module)
    if kind is None:
        where = type(module)
        raise TypeError(
            f"module must be one of {', '.join(_READERS)} of {PACKAGE}, "
            f"got {where.__module__}.{where.__qualname__}"
        )
    name = kind.__qualname__
    for part in module.modules():
        _check_class(part)
    arguments = _READERS[name](module)
    _check_structure(module, getattr(ours, name), arguments)
    return arguments


def _class_of(module: object) -> type | None:
    return library_class(module, PACKAGE, _READERS)


def _check_class(part: nn.Module) -> None:
    """Raise ValueError for overridden methods, and for another version's arguments."""
    kind = _class_of(part)
    if kind is None:
        return
    if changed := overridden(part, kind):
        raise unreadable(", ".join(changed), f"it is not what a {kind.__name__} of {PACKAGE} does")
    known = inspect.signature(getattr(ours, kind.__qualname__)).parameters
    for name, parameter in inspect.signature(kind).parameters.items():
        if name not in known and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            raise unreadable(name, f"ours has no such argument; ours is {PACKAGE} 1.32's")


def _check_structure(module: nn.Module, our_class: type[nn.Module], given: dict[str, Any]) -> None:
    """Raise ValueError unless the arguments make a module with the same parameters and buffers."""
    arguments = dict(given)
    if arguments.get("in_place_codebook_optimizer") is not None:
        arguments["in_place_codebook_optimizer"] = _no_optimizer
    try:
        with torch.device("meta"):
            sketch = our_class(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{our_class.__name__} does not support this module: {error}") from error
    wanted, made = _shapes(module), _shapes(sketch)
    for name in wanted.keys() | made.keys():
        if name.rpartition(".")[2] in _LATER and name not in wanted:
            continue
        if wanted.get(name) != made.get(name):
            raise unreadable(
                name, f"it is {_words(wanted.get(name))}, ours is {_words(made.get(name))}"
            )


def _no_optimizer(parameters: Any) -> None:
    """Stands for the optimizer of a module without memory."""


def _shapes(module: nn.Module) -> dict[str, tuple[bool, list[int]]]:
    """Whether it is a parameter, and the shape, of every entry of the state dict."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return {
        name: (name in parameters, list(getattr(value, "shape", ())))  # an extra state has none
        for name, value in module.state_dict().items()
    }


def _words(entry: tuple[bool, list[int]] | None) -> str:
    if entry is None:
        return "not there"
    return f"a {'parameter' if entry[0] else 'buffer'} {entry[1]}"
