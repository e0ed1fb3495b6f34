"""The compiled CUDA kernels of csrc/cuda, for CUDA tensors."""

import torch

from vqvae_fast import _native
from vqvae_fast.backends.backend import Availability, Backend, Kernels


def _check(device: torch.device) -> Availability:
    if device.type != "cuda":
        return _availability(False, f"it serves CUDA tensors, not {device.type}")
    if _native.cuda_extension is None:
        return _availability(False, _native.cuda_reason)
    return _availability(True, "float32 arithmetic on every GPU since sm_75")


def _availability(available: bool, reason: str) -> Availability:
    return Availability("cuda", "CUDA C++", available, reason)


backend = Backend(
    name="cuda",
    priority=20,
    devices=lambda: ("cuda",),
    check=_check,
    kernels=lambda: Kernels.of(torch.ops.vqvae_fast_cuda),  # the extension defines them
)
