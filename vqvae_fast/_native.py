"""The only import of the compiled module.

``extension`` is the module, or None where it was not built or must not be used;
``reason`` then says why in a sentence. A module that is there but does not load is worth one
warning: the package still works, only slower. A user who asks for an instruction set that the
machine lacks gets an error at import, not a slower answer.
"""

import importlib.util
import os
import sys
import warnings
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

_NAME = "vqvae_fast._C"


def _load() -> tuple[ModuleType | None, str]:
    if os.environ.get("VQVAE_FAST_NO_EXT") == "1":
        warnings.warn(
            "vqvae_fast: VQVAE_FAST_NO_EXT=1 is set; searches run in plain PyTorch, "
            "exact but slower.",
            stacklevel=2,
        )
        return None, "VQVAE_FAST_NO_EXT=1 is set"
    # Beside this file and nowhere else: another installation's module is not ours.
    spec = PathFinder.find_spec(_NAME, [str(Path(__file__).parent)])
    if spec is None or spec.loader is None:
        reason = "the C++ extension was not built (no compiler at install time?)"
        warnings.warn(
            f"vqvae_fast: {reason}; searches run in plain PyTorch, exact but slower. "
            "Install a C++20 compiler and run `pip install --no-build-isolation vqvae_fast` again.",
            stacklevel=2,
        )
        return None, reason
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        reason = f"the C++ extension is there but does not load: {error}"
        warnings.warn(
            f"vqvae_fast: {reason}; searches run in plain PyTorch, exact but slower. "
            "It was probably built for another torch: install again.",
            stacklevel=2,
        )
        return None, reason
    sys.modules[_NAME] = module
    wanted = os.environ.get("VQVAE_FAST_CPU_ISA")
    if wanted:
        try:
            module.set_cpu_isa(wanted)
        except ValueError as error:
            raise ValueError(f"VQVAE_FAST_CPU_ISA: {error}") from None
    return module, ""


extension, reason = _load()
