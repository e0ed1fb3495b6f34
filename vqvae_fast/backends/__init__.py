"""Chooses the kernels that serve a call, and says why.

Each check says whether one backend can serve tensors on a device, and gives the reason; the first
that can is chosen. A backend that is asked for by name (:mod:`vqvae_fast.settings`) gets the same
check. If it fails, the call raises an error instead of using a slower backend.
"""

import functools
import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from vqvae_fast import _native, reference, settings
from vqvae_fast.backends.triton import matrix_units
from vqvae_fast.backends.triton import version as triton_version
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


# The smallest C module that, like Triton's launchers, includes Python.h.
_LAUNCHER = """
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "vqvae_fast_probe", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_vqvae_fast_probe(void) { return PyModule_Create(&module); }
"""


def _compiler() -> str | None:
    """The C compiler that Triton would build its launchers with, if it is there."""
    names = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    return next(filter(None, map(shutil.which, names)), None)


@functools.cache
def _launcher_problem() -> str | None:
    """Why Triton cannot build a module for Python, as it does for every launch, or None.

    Triton builds a small module here, because it knows its compiler, its flags and Python's headers
    itself. It keeps the module in its cache, so the next process does not build it again.
    """
    build = importlib.import_module("triton.runtime.build")
    try:
        build.compile_module_from_src(_LAUNCHER, "vqvae_fast_probe")
    except Exception as error:  # the compiler's, the loader's or that of a builder of its own
        return (
            "Triton cannot build a module for Python, which takes a C compiler and Python.h "
            f"(Debian: apt install python3-dev): {error}"
        )
    return None


def _unfit_gpu(device: torch.device) -> str | None:
    """Why the Triton kernels cannot serve this GPU, or None."""
    if torch.version.hip is not None:
        name = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
        unit = matrix_units.of_amd(name)
    else:
        major, minor = torch.cuda.get_device_capability(device)
        name, unit = f"compute capability {major}.{minor}", matrix_units.of_nvidia(major)
    if unit is None:
        return f"it serves {matrix_units.served()}, this GPU is {name}"
    return None


def _copies(device: torch.device) -> str:
    """The consequence of a fence that Triton leaves out, as the end of a sentence, or ""."""
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return ""
    version, (major, _minor) = triton_version.installed(), torch.cuda.get_device_capability(device)
    if not triton_version.leaves_out_fence(version, major):
        return ""
    if settings.current.unfenced_copies:
        return (
            f"; but Triton {version} does not fence the copies that VQVAE_FAST_UNFENCED_COPIES=1 "
            "asks for: the answers may be wrong"
        )
    return f"; without asynchronous copies, which Triton {version} does not fence, so slower"


def can_run_triton(device: torch.device) -> Backend:
    """The Triton kernels: for CUDA tensors, or for CPU tensors in Triton's interpreter."""

    def answer(available: bool, reason: str) -> Backend:
        return Backend("triton", "Triton", available, reason)

    if importlib.util.find_spec("triton") is None:
        return answer(False, "the package triton is not installed")
    interprets = device.type == "cpu" and settings.current.triton_interprets
    if device.type != "cuda" and not interprets:
        return answer(False, f"it serves CUDA tensors, not {device.type}")
    version = triton_version.installed()
    if not triton_version.at_least(version, triton_version.OLDEST):
        oldest = ".".join(map(str, triton_version.OLDEST))
        return answer(False, f"it needs Triton {oldest}, this is {version}")
    if interprets:
        return answer(True, "in its interpreter, for tests: exact, but very slow")
    if torch.cuda.is_available() and (reason := _unfit_gpu(device)):
        return answer(False, reason)
    if _compiler() is None:
        return answer(False, "Triton needs a C compiler at run time: gcc, clang or what CC names")
    if (reason := _launcher_problem()) is not None:
        return answer(False, reason)
    return answer(True, f"matrix units, and an exact answer{_copies(device)}")


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
# The devices to which a request by name applies: on all others the choice stays automatic.
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
    """The ops of the chosen backend, or of the one with this name; the choice is made once.

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
        "triton": lambda: importlib.import_module("vqvae_fast.backends.triton.ops"),
        "cuda": lambda: _native.cuda_extension,
        "cpu": lambda: torch.ops.vqvae_fast,  # the dispatcher has them
        "reference": lambda: reference,
    }
    return modules[name]()  # type: ignore[no-any-return]
