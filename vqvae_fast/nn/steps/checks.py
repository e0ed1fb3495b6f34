"""The checks of arguments that the quantizers share: each says what it wants and what it got."""

import numbers
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def refuse(*reasons: tuple[Any, str]) -> None:
    """Raise ValueError for the first of (whether something is wrong, what it is) that is wrong."""
    for wrong, what in reasons:
        if wrong:
            raise ValueError(what)


def check_counts(given: Mapping[str, Any]) -> None:
    """Raise unless numbers, by their names, are integers of at least 1.

    Raises:
        TypeError: one is not an integer.
        ValueError: one is less than 1.
    """
    for name, number in given.items():
        if not isinstance(number, numbers.Integral):
            raise TypeError(f"{name} must be an integer, got {number!r}")
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number!r}")


def check_real(given: Mapping[str, Any]) -> None:
    """Raise TypeError unless numbers, by their names, are real."""
    for name, number in given.items():
        if not isinstance(number, numbers.Real):
            raise TypeError(f"{name} must be a number, got {number!r}")


def check_shares(given: Mapping[str, Any]) -> None:
    """Raise ValueError unless numbers, by their names, are in [0, 1]."""
    for name, number in given.items():
        if not 0 <= number <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {number!r}")


def check_not_negative(given: Mapping[str, Any]) -> None:
    """Raise ValueError if one of the numbers, by their names, is negative."""
    for name, number in given.items():
        if not number >= 0:
            raise ValueError(f"{name} must not be negative, got {number!r}")


def check_one_head(heads: Any) -> None:
    """Raise ValueError unless heads is 1, as it must be in residual quantizers."""
    refuse((heads != 1, f"heads must be 1 in residual quantizers, got {heads}"))


def check_floats(name: str, tensor: Any) -> None:
    """Raise TypeError unless the argument of this name is a tensor of floats."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        what = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a tensor of floats, got {what}")


def positive(name: str, number: Any) -> int:
    """Convert a number to int; integers of NumPy and the like are accepted.

    Raises:
        ValueError: it is no integer of at least 1.
    """
    try:
        whole = 0 if isinstance(number, bool) else operator.index(number)
    except TypeError:
        whole = 0
    if whole < 1:
        raise ValueError(f"{name} must be a positive integer, got {number!r}")
    return whole


def check_learning(learning: Any, decay: float, eps: float, **weights: float) -> None:
    """Check how a codebook learns, and weights by their names.

    Raises:
        ValueError: an argument is out of range.
    """
    if learning not in ("gradient", "ema"):
        raise ValueError(f"learning must be 'gradient' or 'ema', got {learning!r}")
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay!r}")
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps!r}")
    check_not_negative(weights)


def check_feature_map(z: Any, dim: int) -> None:
    """Raise for a z that is not a tensor of floats [B, dim, H, W]."""
    check_floats("z", z)
    if z.dim() != 4 or z.shape[1] != dim:
        raise ValueError(f"z must be [B, e_dim={dim}, H, W], got {list(z.shape)}")


def check_index_map(indices: Any) -> None:
    """Raise ValueError unless indices is int64 [B, H, W]."""
    if indices.dim() != 3 or indices.dtype != torch.int64:
        raise ValueError(
            f"indices must be int64 [B, H, W], got {indices.dtype} {list(indices.shape)}"
        )
