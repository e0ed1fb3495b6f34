"""The Triton kernels: for CUDA tensors, or for CPU tensors in Triton's interpreter."""

import functools
import importlib
import importlib.util
import os
import shutil

import torch

from vqvae_fast import settings
from vqvae_fast.backends.backend import Availability, Backend, Kernels
from vqvae_fast.backends.triton import matrix_units, version

# The smallest C module that, like Triton's launchers, includes Python.h.
_LAUNCHER = """
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "vqvae_fast_probe", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_vqvae_fast_probe(void) { return PyModule_Create(&module); }
"""


def _check(device: torch.device) -> Availability:
    def answer(available: bool, reason: str) -> Availability:
        return Availability("triton", "Triton", available, reason)

    if importlib.util.find_spec("triton") is None:
        return answer(False, "the package triton is not installed")
    interprets = device.type == "cpu" and settings.current.triton_interprets
    if device.type != "cuda" and not interprets:
        return answer(False, f"it serves CUDA tensors, not {device.type}")
    installed = version.installed()
    if not version.at_least(installed, version.OLDEST):
        oldest = ".".join(map(str, version.OLDEST))
        return answer(False, f"it needs Triton {oldest}, this is {installed}")
    if interprets:
        return answer(True, "in its interpreter, for tests: exact, but very slow")
    if torch.cuda.is_available() and (reason := _unfit_gpu(device)):
        return answer(False, reason)
    if _compiler() is None:
        return answer(False, "Triton needs a C compiler at run time: gcc, clang or what CC names")
    if (reason := _launcher_problem()) is not None:
        return answer(False, reason)
    return answer(True, f"matrix units, and an exact answer{_copies(device)}")


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
    try:
        build = importlib.import_module("triton.runtime.build")
    except Exception as error:  # a broken installation raises what it likes
        return f"Triton cannot be imported: {error}"
    try:
        build.compile_module_from_src(_LAUNCHER, "vqvae_fast_probe")
    except Exception as error:  # the compiler's, the loader's or that of a builder of its own
        return (
            "Triton cannot build a module for Python, which takes a C compiler and Python.h "
            f"(Debian: apt install python3-dev): {error}"
        )
    return None


def _copies(device: torch.device) -> str:
    """The consequence of a fence that Triton leaves out, as the end of a sentence, or ""."""
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return ""
    installed, (major, _minor) = version.installed(), torch.cuda.get_device_capability(device)
    if not version.leaves_out_fence(installed, major):
        return ""
    if settings.current.unfenced_copies:
        return (
            f"; but Triton {installed} does not fence the copies that VQVAE_FAST_UNFENCED_COPIES=1 "
            "asks for: the answers may be wrong"
        )
    return f"; without asynchronous copies, which Triton {installed} does not fence, so slower"


def _devices() -> tuple[str, ...]:
    return ("cuda", "cpu") if settings.current.triton_interprets else ("cuda",)


def _kernels() -> Kernels:
    return Kernels.of(importlib.import_module("vqvae_fast.backends.triton.ops"))


backend = Backend(
    name="triton",
    priority=30,
    devices=_devices,
    check=_check,
    kernels=_kernels,
    compiles=True,
)
