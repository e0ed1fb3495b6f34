"""Plain PyTorch, for tensors on every device."""

import torch

from vqvae_fast.backends.backend import Availability, Backend, Kernels
from vqvae_fast.backends.reference import ops


def _check(device: torch.device) -> Availability:
    reason = "runs on every device, exact but slower"
    return Availability("reference", "PyTorch reference", True, reason)


backend = Backend(
    name="reference",
    priority=0,
    devices=lambda: ("cpu", "cuda"),
    check=_check,
    kernels=lambda: Kernels.of(ops),
    # The dispatcher has these functions already: they are the default of every device.
    register_on_cpu=lambda: None,
)
