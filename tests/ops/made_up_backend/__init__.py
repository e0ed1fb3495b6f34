"""A backend that a test copies into vqvae_fast/backends: a search in float64 on the CPU."""

import torch
from torch import Tensor

from vqvae_fast.backends import Availability, Backend, Kernels

searches = 0


def _nearest_code(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    global searches
    searches += 1
    distances = (z[..., None, :].double() - codebook.double()).square().sum(dim=-1)
    nearest, indices = distances.min(dim=-1)
    return indices, nearest.float()


def _check(device: torch.device) -> Availability:
    available = device.type == "cpu"
    reason = "one line of PyTorch" if available else f"it serves CPU tensors, not {device.type}"
    return Availability("made_up", "Made up", available, reason)


backend = Backend(
    name="made_up",
    priority=100,
    devices=lambda: ("cpu",),
    check=_check,
    kernels=lambda: Kernels(nearest_code=_nearest_code),
)
