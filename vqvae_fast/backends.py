"""Which kernel serves a search, and why.

The dispatcher makes the choice (the extension registers its kernels under the ops' names, the
reference serves every other call); these checks follow the same order and explain it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from vqvae_fast import _native


class Backend(NamedTuple):
    """One way of running the search on a device.

    Attributes:
        name: what runs.
        available: whether it can run here.
        reason: why, or why not.
    """

    name: str
    available: bool
    reason: str


def can_run_cpp(device: torch.device) -> Backend:
    """The compiled C++ kernels, for CPU tensors."""
    extension = _native.extension
    if device.type != "cpu":
        return Backend("C++", False, f"it serves CPU tensors, not {device.type}")
    if extension is None:
        return Backend("C++", False, _native.reason)
    isa, others = extension.cpu_isa(), extension.available_cpu_isas()
    has = f"this processor has {', '.join(others)}"
    if isa != others[0]:
        return Backend(f"C++ ({isa})", True, f"selected by VQVAE_FAST_CPU_ISA; {has}")
    return Backend(
        f"C++ ({isa})", True, f"the fastest; {has} (VQVAE_FAST_CPU_ISA overrides the choice)"
    )


def can_run_reference(device: torch.device) -> Backend:
    """Plain PyTorch, for tensors anywhere."""
    where = "" if device.type == "cpu" else f"; there is no kernel of its own for {device.type} yet"
    return Backend("PyTorch reference", True, f"runs on every device, exact but slower{where}")


# In the order in which they are tried.
_CHECKS: tuple[Callable[[torch.device], Backend], ...] = (can_run_cpp, can_run_reference)


def backends(device: torch.device | str) -> list[Backend]:
    """Every backend with its reason, in the order in which they are tried."""
    device = torch.device(device)
    return [check(device) for check in _CHECKS]


def chosen(device: torch.device | str) -> Backend:
    """The backend that serves searches on a device: the first that can run."""
    return next(backend for backend in backends(device) if backend.available)
