"""The settings of live modules whose weights a format reads."""

from collections.abc import Collection
from typing import Any

from torch import nn

from vqvae_fast.checkpoints.live import dac, embedding, encodec, mimi, rosinality
from vqvae_fast.checkpoints.weights import Weights

_LIBRARIES = (mimi, encodec, dac, rosinality, embedding)


def settings_of(module: nn.Module, weights: Weights, given: Collection[str]) -> dict[str, Any]:
    """Options for the format that describes a live module; none for an unknown class.

    Args:
        module: the live one.
        weights: of it; those that it does not use are taken out.
        given: names of the options that the caller has given.

    Raises:
        ValueError: the module does what ours does not do.
    """
    for library in _LIBRARIES:
        found: dict[str, Any] | None = library.settings(module, weights, given)
        if found is not None:
            return found
    return {}
