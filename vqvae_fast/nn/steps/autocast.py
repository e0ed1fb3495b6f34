"""Codebooks keep their precision under autocast."""

import contextlib
from typing import Any

import torch


def without_autocast(device: str) -> contextlib.AbstractContextManager[Any]:
    """Distances in bfloat16 would not be those of the nearest code."""
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
