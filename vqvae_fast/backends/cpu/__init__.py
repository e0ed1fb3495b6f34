"""The compiled C++ kernels of csrc/cpu, for CPU tensors."""

import torch

from vqvae_fast import _native
from vqvae_fast.backends.backend import Availability, Backend, Kernels

# These instruction sets are not chosen before a machine that has them has measured them.
_NEW = ("avx512amx",)


def _check(device: torch.device) -> Availability:
    extension = _native.extension
    if device.type != "cpu":
        return Availability("cpu", "C++", False, f"it serves CPU tensors, not {device.type}")
    if extension is None:
        return Availability("cpu", "C++", False, _native.reason)
    isa, others = extension.cpu_isa(), extension.available_cpu_isas()
    why = (
        f"selected by VQVAE_FAST_CPU_ISA; this processor has {', '.join(others)}"
        if isa != others[0]
        else f"the fastest; this processor has {', '.join(others)} "
        "(VQVAE_FAST_CPU_ISA overrides the choice)"
    )
    why += "".join(f"; {other} has not been measured yet" for other in others[1:] if other in _NEW)
    return Availability("cpu", f"C++ ({isa})", True, why)


def _register() -> None:
    assert _native.extension is not None
    _native.extension.register_kernels()


backend = Backend(
    name="cpu",
    priority=10,
    devices=lambda: ("cpu",),
    check=_check,
    kernels=lambda: Kernels.of(torch.ops.vqvae_fast),  # the dispatcher has them
    register_on_cpu=_register,
)
