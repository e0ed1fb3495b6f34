"""Keeps the precision of vectors and codebooks under autocast."""

import contextlib
from typing import Any

import torch

from vqvae_fast.tracing import called_while_tracing


@called_while_tracing  # the compiler of torch 2.10 cannot trace this question
def _has_autocast(device: str) -> bool:
    """Return whether torch has autocast for devices of this type."""
    return torch.amp.is_autocast_available(device)


def is_autocast(device: str) -> bool:
    """Return whether autocast is enabled for devices of this type."""
    return _has_autocast(device) and torch.is_autocast_enabled(device)


def without_autocast(device: str) -> contextlib.AbstractContextManager[Any]:
    """Disable autocast, because distances in bfloat16 would not find the nearest code."""
    if is_autocast(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
