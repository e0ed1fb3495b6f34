"""The type of a format."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from vqvae_fast.checkpoints.weights import Weights

# The name of our class, the arguments of its constructor, its state dict.
Description = tuple[str, dict[str, Any], dict[str, Tensor]]


class Format(NamedTuple):
    """One layout of a quantizer's weights.

    Attributes:
        title: for messages.
        anchor: matches the name of a weight by which the layout is known; its group ``prefix`` is
            what stands before the quantizer's own names.
        describe: takes the weights that it knows out of the first argument; out of the second it
            may take options that are for it.
    """

    title: str
    anchor: re.Pattern[str]
    describe: Callable[[Weights, dict[str, Any]], Description]


def anchor(pattern: str) -> re.Pattern[str]:
    """The pattern of a quantizer's own name for a weight, behind any prefix."""
    return re.compile(rf"(?P<prefix>(?:.*\.)?){pattern}")
