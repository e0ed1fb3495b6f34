"""The only import of the compiled modules.

``extension`` holds the CPU kernels and ``cuda_extension`` those for CUDA; each is the module, or
None where it was not built or must not be used, and ``reason`` and ``cuda_reason`` then say why in
a sentence. A module that is there but does not load is worth one warning: the package still works,
only slower. A user who asks for an instruction set that the machine lacks gets an error at import,
not a slower answer.
"""

import importlib.util
import os
import sys
import warnings
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

import torch

# Triton binds this when a kernel is decorated, so it holds for the whole process.
triton_interprets = (
    os.environ.get("VQVAE_FAST_BACKEND") == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
)
_SLOWER = "searches run in plain PyTorch, exact but slower"


def _load_cpu() -> tuple[ModuleType | None, str]:
    if triton_interprets:
        return None, "VQVAE_FAST_BACKEND=triton and TRITON_INTERPRET=1 are set"
    if os.environ.get("VQVAE_FAST_BACKEND") == "reference":
        return None, "VQVAE_FAST_BACKEND=reference is set"
    if os.environ.get("VQVAE_FAST_NO_EXT") == "1":
        _warn(f"VQVAE_FAST_NO_EXT=1 is set; {_SLOWER}.")
        return None, "VQVAE_FAST_NO_EXT=1 is set"
    module, reason = _load("_C", "C++")
    if module is None:
        if reason == _absent("C++"):
            reason = f"{reason} (no compiler at install time?)"
            _warn(
                f"{reason}; {_SLOWER}. Install a C++20 compiler and run "
                "`pip install --no-build-isolation vqvae_fast` again."
            )
        else:
            _warn(f"{reason}; {_SLOWER}. It was probably built for another torch: install again.")
        return None, reason
    wanted = os.environ.get("VQVAE_FAST_CPU_ISA")
    if wanted:
        try:
            module.set_cpu_isa(wanted)
        except ValueError as error:
            raise ValueError(f"VQVAE_FAST_CPU_ISA: {error}") from None
    return module, ""


def _load_cuda() -> tuple[ModuleType | None, str]:
    if os.environ.get("VQVAE_FAST_NO_EXT") == "1":
        return None, "VQVAE_FAST_NO_EXT=1 is set"
    if torch.version.cuda is None:
        return None, "this torch was built without CUDA"
    module, reason = _load("_cuda", "CUDA")
    if module is None and reason != _absent("CUDA"):
        _warn(f"{reason}. It was probably built for another torch: install again.")
    return module, reason


def _absent(kind: str) -> str:
    return f"the {kind} extension was not built"


def _load(name: str, kind: str) -> tuple[ModuleType | None, str]:
    """The module of this name beside this file, or the reason why there is none."""
    full_name = f"vqvae_fast.{name}"
    # Beside this file and nowhere else: another installation's module is not ours.
    spec = PathFinder.find_spec(full_name, [str(Path(__file__).parent)])
    if spec is None or spec.loader is None:
        return None, _absent(kind)
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        return None, f"the {kind} extension is there but does not load: {error}"
    sys.modules[full_name] = module
    return module, ""


def _warn(sentence: str) -> None:
    warnings.warn(f"vqvae_fast: {sentence}", stacklevel=4)


extension, reason = _load_cpu()
cuda_extension, cuda_reason = _load_cuda()
