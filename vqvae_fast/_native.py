"""The only import of the compiled modules.

``extension`` holds the CPU kernels and ``cuda_extension`` those for CUDA; each is the module, or
None where it was not built or must not be used, and ``reason`` and ``cuda_reason`` then say why in
a sentence. A module that exists but cannot be used causes one warning: the package
still works, only slower. There is no warning if a call raises instead, because the module was asked
for by name.

``isa_problem`` says what is wrong with VQVAE_FAST_CPU_ISA, if anything is.
"""

import importlib.util
import mmap
import sys
import warnings
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

import torch

from vqvae_fast import settings
from vqvae_fast._version import EXTENSION_CONTRACT, __version__

_SLOWER = "searches run in plain PyTorch, exact but slower"
# csrc/build_stamp.h puts these bytes and the numbers into every extension, and a zero behind them.
_STAMP = b"vqvae_fast build: "
_EXPECTED = f"version {__version__}, contract {EXTENSION_CONTRACT}"


def _load_cpu() -> tuple[ModuleType | None, str]:
    asked = settings.current
    if asked.triton_interprets:
        return None, "VQVAE_FAST_BACKEND=triton and TRITON_INTERPRET=1 are set"
    if asked.backend == "reference":
        return None, "VQVAE_FAST_BACKEND=reference is set"
    if asked.no_extension:
        reason = advice = "VQVAE_FAST_NO_EXT=1 is set"
        module = None
    else:
        module, reason = _load("_C", "C++")
        advice = f"{reason}. Install vqvae_fast again"
        if reason == _absent("C++"):
            reason = f"{reason} (no compiler at install time?)"
            advice = (
                f"{reason}. Install a C++20 compiler and run "
                "`pip install --no-build-isolation vqvae_fast` again"
            )
    raises = asked.problem or asked.backend == "cpu" or asked.cpu_isa is not None
    if module is None and not raises:
        _warn(f"{advice}: {_SLOWER}.")
    return module, reason


def _load_cuda() -> tuple[ModuleType | None, str]:
    if settings.current.no_extension:
        return None, "VQVAE_FAST_NO_EXT=1 is set"
    if torch.version.cuda is None:
        return None, "this torch was built without CUDA"
    module, reason = _load("_cuda", "CUDA")
    if module is None and reason != _absent("CUDA") and settings.current.backend != "cuda":
        _warn(f"{reason}. Install vqvae_fast again.")
    return module, reason


def _absent(kind: str) -> str:
    return f"the {kind} extension was not built"


def _load(name: str, kind: str) -> tuple[ModuleType | None, str]:
    """The module of this name beside this file, or the reason why there is none."""
    full_name = f"vqvae_fast.{name}"
    # Search beside this file only: another installation's module must not be loaded.
    spec = PathFinder.find_spec(full_name, [str(Path(__file__).parent)])
    if spec is None or spec.loader is None:
        return None, _absent(kind)
    try:
        built_for = _built_for(spec)
        if built_for != _EXPECTED:
            return None, (
                f"the {kind} extension is there but was built for {built_for} of vqvae_fast, "
                f"this is {_EXPECTED}"
            )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (ImportError, OSError) as error:
        return None, (
            f"the {kind} extension is there but does not load (is torch older than 2.10?): {error}"
        )
    sys.modules[full_name] = module
    return module, ""


def _built_for(spec: ModuleSpec) -> str:
    """The numbers that a compiled module was built with, as its file says.

    This searches the file instead of asking the loaded module, because loading cannot be undone and
    a library of another version could end the process.
    """
    assert spec.origin is not None
    with open(spec.origin, "rb") as file:
        if file.seek(0, 2) == 0:  # an empty file cannot be mapped
            return "an unknown version"
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content.find(_STAMP)
            if start < 0:
                return "an unknown version"
            start += len(_STAMP)
            return content[start : content.find(b"\0", start)].decode(errors="replace")


def _select_isa() -> str:
    """Use the requested instruction set; return what is wrong with its name, or ""."""
    if extension is not None and settings.current.cpu_isa is not None:
        try:
            extension.set_cpu_isa(settings.current.cpu_isa)
        except ValueError as error:
            return f"VQVAE_FAST_CPU_ISA: {error}"
    return ""


def _warn(sentence: str) -> None:
    warnings.warn(f"vqvae_fast: {sentence}", stacklevel=4)


extension, reason = _load_cpu()
cuda_extension, cuda_reason = _load_cuda()
isa_problem = _select_isa()
