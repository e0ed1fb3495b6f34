"""Codes of several stages, of which the last ones may have been left out."""

import torch
from torch import Tensor


def padded_indices(indices: Tensor, stages: int) -> tuple[Tensor, ...]:
    """Split indices [..., q <= Q] into those of Q stages, with -1 for stages that were left out.

    Raises:
        ValueError: there are more than Q stages.
    """
    missing = stages - indices.shape[-1]
    if missing < 0:
        raise ValueError(f"indices must be [..., at most Q={stages}], got {list(indices.shape)}")
    return torch.nn.functional.pad(indices, (0, missing), value=-1).unbind(dim=-1)


def sum_of_stages(codes: Tensor) -> Tensor:
    """Sum codes [Q, ...] to [...], in the order of the stages."""
    total = codes[0]
    for stage in codes[1:]:
        total = total + stage
    return total
