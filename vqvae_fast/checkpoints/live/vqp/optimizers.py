"""The optimizer that a VectorQuantize has made for its codes."""

import copy
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from vqvae_fast.checkpoints.live.attributes import unreadable

_NAME = "in_place_codebook_optimizer"


@dataclass(frozen=True)
class OptimizerFactory:
    """Makes optimizers of one class with the same settings; two of the same compare equal.

    Attributes:
        kind: the class.
        settings: arguments of its constructor.
    """

    kind: type[Optimizer]
    settings: dict[str, Any]

    def __call__(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """An optimizer of these parameters, without state."""
        return self.kind(parameters, **self.settings)


def optimizer_factory(
    optimizer: Optimizer | None, codebook: nn.Module, *, of_first_stage: bool = True
) -> OptimizerFactory | None:
    """What makes such an optimizer again, with the settings that it has now.

    Args:
        optimizer: of a live VectorQuantize; None if it has none.
        codebook: of the same.
        of_first_stage: False for the optimizer of a stage that shares the first stage's codebook:
            its parameters were left behind, and it does nothing.

    Raises:
        ValueError: its settings cannot be read back, or it moves other parameters.
    """
    if optimizer is None:
        return None
    groups = optimizer.param_groups
    if len(groups) != 1:
        raise unreadable(_NAME, f"it must have one group of parameters, got {len(groups)}")
    parameters = list(codebook.parameters())
    if of_first_stage and not _same(groups[0]["params"], parameters):
        raise unreadable(_NAME, "its parameters are no longer those of the codebook")
    settings = copy.deepcopy({n: value for n, value in groups[0].items() if n != "params"})
    kind = type(optimizer)
    taken = inspect.signature(kind.__init__).parameters
    factory = OptimizerFactory(kind, {n: v for n, v in settings.items() if n in taken})
    try:
        (made,) = factory([nn.Parameter(torch.empty_like(p[:0])) for p in parameters]).param_groups
    except Exception as error:  # its constructor may raise anything
        raise unreadable(
            _NAME, f"{kind.__name__} cannot be made from its own settings ({error})"
        ) from error
    lost = sorted(n for n, v in settings.items() if n not in made or made[n] != v)
    if lost:
        raise unreadable(_NAME, f"{kind.__name__}'s constructor does not set {', '.join(lost)}")
    return factory


def _same(given: list[nn.Parameter], parameters: list[nn.Parameter]) -> bool:
    return len(given) == len(parameters) and all(
        one is other for one, other in zip(given, parameters, strict=True)
    )
