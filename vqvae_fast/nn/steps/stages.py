"""Codes of several stages, of which the last may have been left out."""

import torch
from torch import Tensor


def padded_indices(indices: Tensor, stages: int) -> tuple[Tensor, ...]:
    """indices [..., q <= Q] -> Q of them, those of stages that were left out full of -1.

    Raises:
        ValueError: there are more than Q.
    """
    missing = stages - indices.shape[-1]
    if missing < 0:
        raise ValueError(f"indices must be [..., at most Q={stages}], got {list(indices.shape)}")
    return torch.nn.functional.pad(indices, (0, missing), value=-1).unbind(dim=-1)


def sum_of_stages(codes: Tensor) -> Tensor:
    """codes [Q, ...] -> [...]; added in the order in which the stages have chosen them."""
    total = codes[0]
    for stage in codes[1:]:
        total = total + stage
    return total
