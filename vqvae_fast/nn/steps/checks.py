"""What VectorQuantizer and its sharded sibling accept."""

import operator
from typing import Any

import torch
from torch import Tensor


def positive(name: str, number: Any) -> int:
    """The number as an int; integers of NumPy and the like are welcome."""
    try:
        whole = 0 if isinstance(number, bool) else operator.index(number)
    except TypeError:
        whole = 0
    if whole < 1:
        raise ValueError(f"{name} must be a positive integer, got {number!r}")
    return whole


def check_learning(learning: Any, decay: float, eps: float, **weights: float) -> None:
    """How a codebook learns, and weights by their names, none of which is negative."""
    if learning not in ("gradient", "ema"):
        raise ValueError(f"learning must be 'gradient' or 'ema', got {learning!r}")
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay!r}")
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps!r}")
    for name, weight in weights.items():
        if not weight >= 0:
            raise ValueError(f"{name} must not be negative, got {weight!r}")


def check_feature_map(z: Any, dim: int) -> None:
    """Raise for a z that is not a tensor of floats [B, dim, H, W]."""
    if not isinstance(z, Tensor) or not z.is_floating_point():
        what = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise TypeError(f"z must be a tensor of floats, got {what}")
    if z.dim() != 4 or z.shape[1] != dim:
        raise ValueError(f"z must be [B, e_dim={dim}, H, W], got {list(z.shape)}")


def check_index_map(indices: Any) -> None:
    """Raise ValueError unless indices is int64 [B, H, W]."""
    if indices.dim() != 3 or indices.dtype != torch.int64:
        raise ValueError(
            f"indices must be int64 [B, H, W], got {indices.dtype} {list(indices.shape)}"
        )
