"""Keeps the precision of codebooks under autocast."""

import contextlib
from typing import Any

import torch


def without_autocast(device: str) -> contextlib.AbstractContextManager[Any]:
    """Disable autocast, because distances in bfloat16 would not find the nearest code."""
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
