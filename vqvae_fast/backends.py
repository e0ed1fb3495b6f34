"""Which kernels serve a call, and why.

Each check says whether one backend can serve tensors on a device, and gives the reason; the first
that can is chosen. A backend that is asked for by name (:mod:`vqvae_fast.settings`) gets the same
check: where it says no, the call is an error rather than a slower answer.
"""

import functools
import importlib.metadata
import importlib.util
import os
import re
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from vqvae_fast import _native, reference, settings
from vqvae_fast.settings import UnknownSettingError, UnmetRequestError


class Kernels(Protocol):
    """The ops as one backend runs them; arguments and results are those of the ops."""

    nearest_code: Callable[..., tuple[Tensor, Tensor]]
    quantize: Callable[..., tuple[Tensor, Tensor, Tensor]]
    segment_sum: Callable[..., tuple[Tensor, Tensor]]
    quantize_backward: Callable[..., tuple[Tensor, Tensor]]


class Backend(NamedTuple):
    """One way of running the ops on a device.

    Attributes:
        name: what ``VQVAE_FAST_BACKEND`` and ``backend`` call it.
        title: what runs.
        available: whether it can run here.
        reason: why, or why not.
    """

    name: str
    title: str
    available: bool
    reason: str


# Before 3.5, Triton lacked settings that the kernels read, and gave the result of an atomic to one
# thread alone: the exact search's last program would have been nobody.
_OLDEST_TRITON = (3, 5)
# The other AMD GPUs flush float16's subnormals in matrix products, and the bound counts on them, or
# have less shared memory than the tiles may take (configurations.py).
_AMD_GPUS = ("gfx942", "gfx950")


def _triton_version() -> str:
    """As its package says, or, where that has another name (as for ROCm), the module itself."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return str(importlib.import_module("triton").__version__)


def _compiler() -> str | None:
    """The C compiler that Triton would build its launchers with, if it is there."""
    names = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    return next(filter(None, map(shutil.which, names)), None)


def _unfit_gpu(device: torch.device) -> str | None:
    """Why the Triton kernels are not for this GPU."""
    if torch.version.hip is not None:
        arch = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
        if arch not in _AMD_GPUS:
            return f"of AMD's GPUs it serves {' and '.join(_AMD_GPUS)}, this one is {arch}"
    elif (capability := torch.cuda.get_device_capability(device)) < (8, 0):
        return f"it needs compute capability 8.0, this GPU has {capability}"
    return None


def can_run_triton(device: torch.device) -> Backend:
    """The Triton kernels: for CUDA tensors, or for CPU tensors in Triton's interpreter."""

    def answer(available: bool, reason: str) -> Backend:
        return Backend("triton", "Triton", available, reason)

    if importlib.util.find_spec("triton") is None:
        return answer(False, "the package triton is not installed")
    interprets = device.type == "cpu" and settings.current.triton_interprets
    if device.type != "cuda" and not interprets:
        return answer(False, f"it serves CUDA tensors, not {device.type}")
    version = _triton_version()
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < _OLDEST_TRITON:
        oldest = ".".join(map(str, _OLDEST_TRITON))
        return answer(False, f"it needs Triton {oldest}, this is {version}")
    if interprets:
        return answer(True, "in its interpreter, for tests: exact, but very slow")
    if torch.cuda.is_available() and (reason := _unfit_gpu(device)):
        return answer(False, reason)
    if _compiler() is None:
        return answer(False, "Triton needs a C compiler at run time: gcc, clang or what CC names")
    return answer(True, "matrix units, and an exact answer")


def can_run_cuda(device: torch.device) -> Backend:
    """The compiled CUDA kernels, for CUDA tensors."""
    if device.type != "cuda":
        return Backend("cuda", "CUDA C++", False, f"it serves CUDA tensors, not {device.type}")
    if _native.cuda_extension is None:
        return Backend("cuda", "CUDA C++", False, _native.cuda_reason)
    return Backend("cuda", "CUDA C++", True, "float32 arithmetic on every GPU since sm_75")


def can_run_cpu(device: torch.device) -> Backend:
    """The compiled C++ kernels, for CPU tensors."""
    extension = _native.extension
    if device.type != "cpu":
        return Backend("cpu", "C++", False, f"it serves CPU tensors, not {device.type}")
    if extension is None:
        return Backend("cpu", "C++", False, _native.reason)
    isa, others = extension.cpu_isa(), extension.available_cpu_isas()
    why = (
        f"selected by VQVAE_FAST_CPU_ISA; this processor has {', '.join(others)}"
        if isa != others[0]
        else f"the fastest; this processor has {', '.join(others)} "
        "(VQVAE_FAST_CPU_ISA overrides the choice)"
    )
    return Backend("cpu", f"C++ ({isa})", True, why)


def can_run_reference(device: torch.device) -> Backend:
    """Plain PyTorch, for tensors anywhere."""
    return Backend("reference", "PyTorch reference", True, "runs on every device, exact but slower")


# In the order in which they are tried.
_CHECKS: dict[str, Callable[[torch.device], Backend]] = {
    "triton": can_run_triton,
    "cuda": can_run_cuda,
    "cpu": can_run_cpu,
    "reference": can_run_reference,
}
# The devices that a request by name is about: on all others the choice stays automatic.
_SERVES = {"triton": ("cuda",), "cuda": ("cuda",), "cpu": ("cpu",), "reference": ("cpu", "cuda")}


def _is_about(request: str, device: torch.device) -> bool:
    interprets = request == "triton" and settings.current.triton_interprets
    return device.type in _SERVES[request] or (interprets and device.type == "cpu")


def backends(device: torch.device | str) -> list[Backend]:
    """Every backend with its reason, in the order in which they are tried."""
    device = torch.device(device)
    return [check(device) for check in _CHECKS.values()]


def chosen(device: torch.device | str) -> Backend:
    """The backend that serves tensors on a device: the requested one, or the first that can.

    Raises:
        ValueError: a setting has a value that has no meaning.
        RuntimeError: what was asked for by name cannot run there.
    """
    device, asked = torch.device(device), settings.current
    if asked.problem:
        raise UnknownSettingError(asked.problem)
    isa = asked.cpu_isa if device.type == "cpu" else None
    if isa is not None and _native.isa_problem:
        raise UnknownSettingError(_native.isa_problem)
    if isa is not None and not (cpu := can_run_cpu(device)).available:
        raise UnmetRequestError(f"VQVAE_FAST_CPU_ISA={isa} needs the C++ kernels, but {cpu.reason}")
    if asked.backend is not None and _is_about(asked.backend, device):
        backend = _CHECKS[asked.backend](device)
        if not backend.available:
            raise UnmetRequestError(f"VQVAE_FAST_BACKEND={asked.backend}, but {backend.reason}")
        return backend
    return next(backend for backend in backends(device) if backend.available)


@functools.cache
def kernels(device: torch.device, name: str | None = None) -> Kernels:
    """The ops of the chosen backend, or of the one with this name. Both are settled once.

    Raises:
        ValueError: there is no backend of this name, or :func:`chosen` raises it.
        RuntimeError: it cannot run on this device.
    """
    if name is None:
        name = chosen(device).name
    elif name not in _CHECKS:
        raise ValueError(f"backend must be one of {', '.join(_CHECKS)}, got {name!r}")
    elif not (backend := _CHECKS[name](device)).available:
        raise UnmetRequestError(f"backend={name!r}, but {backend.reason}")
    modules: dict[str, Callable[[], Any]] = {
        "triton": lambda: importlib.import_module("vqvae_fast.triton"),
        "cuda": lambda: _native.cuda_extension,
        "cpu": lambda: torch.ops.vqvae_fast,  # the dispatcher has them
        "reference": lambda: reference,
    }
    return modules[name]()  # type: ignore[no-any-return]
