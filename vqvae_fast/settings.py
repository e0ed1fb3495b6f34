"""The environment variables that choose the kernels, read once, when the package is imported.

``VQVAE_FAST_BACKEND`` asks for one backend on the devices that it serves: auto (the default),
cpu, cuda, reference or triton. ``VQVAE_FAST_CPU_ISA`` asks for the C++ kernels of one instruction
set on CPU tensors. ``VQVAE_FAST_NO_EXT=1`` leaves the compiled extensions out.
``VQVAE_FAST_UNFENCED_COPIES=1`` is for benchmarks: where Triton leaves out a fence
(:mod:`vqvae_fast.backends.triton.version`), the kernels take the faster form that needs it, and
their answers may be wrong. ``VQVAE_FAST_TILES`` names a file of tile sizes for the Triton kernels
(:mod:`vqvae_fast.backends.triton.tiles`).
``TRITON_INTERPRET=1`` (Triton's own) with ``VQVAE_FAST_BACKEND=triton`` serves CPU tensors by
Triton's interpreter.

A backend that is asked for by name runs, or the first call raises: a ValueError for a value that
has no meaning, a RuntimeError for a backend that cannot run here. Importing the package never
raises, so that ``vqvae-fast info`` can say what is wrong. Variables that are set after the import
have no effect.
"""

import os
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

# Each folder in vqvae_fast/backends is a backend.
_FOLDERS = pkgutil.iter_modules([str(Path(__file__).parent / "backends")])
BACKENDS = tuple(sorted(folder.name for folder in _FOLDERS if folder.ispkg))
# Triton's own reading of its variables.
_TRUE = ("1", "true", "yes", "on", "y")


class UnknownSettingError(ValueError):
    """A variable has a value that has no meaning."""


class UnmetRequestError(RuntimeError):
    """A backend that was asked for by name cannot run."""


class Settings(NamedTuple):
    """What the environment asks for.

    Attributes:
        backend: one of BACKENDS; None leaves the choice to the package.
        cpu_isa: the name of an instruction set; None takes the best one.
        no_extension: the compiled extensions are left out.
        triton_interprets: Triton's interpreter serves CPU tensors.
        unfenced_copies: the kernels take the faster form, whose answers may be wrong, if Triton
            leaves out a fence.
        tiles: the path of a file with tile sizes; None takes the package's own.
        problem: what is wrong with a value, in a sentence; "" if nothing is.
    """

    backend: str | None = None
    cpu_isa: str | None = None
    no_extension: bool = False
    triton_interprets: bool = False
    unfenced_copies: bool = False
    tiles: str | None = None
    problem: str = ""


def read(environment: Mapping[str, str]) -> Settings:
    """The settings in these variables; an empty value counts as none."""
    problem = ""
    backend: str | None = environment.get("VQVAE_FAST_BACKEND") or "auto"
    if backend not in ("auto", *BACKENDS):
        known = ", ".join(BACKENDS)
        problem = f"VQVAE_FAST_BACKEND must be auto or one of {known}, got {backend!r}"
    switches = {}
    for name in ("VQVAE_FAST_NO_EXT", "VQVAE_FAST_UNFENCED_COPIES"):
        value = environment.get(name) or "0"
        if value not in ("0", "1"):
            problem = problem or f"{name} must be 0 or 1, got {value!r}"
        switches[name] = value == "1"
    interpret = environment.get("TRITON_INTERPRET", "").lower() in _TRUE
    return Settings(
        backend=backend if backend in BACKENDS else None,
        cpu_isa=environment.get("VQVAE_FAST_CPU_ISA") or None,
        no_extension=switches["VQVAE_FAST_NO_EXT"],
        unfenced_copies=switches["VQVAE_FAST_UNFENCED_COPIES"],
        # Triton binds this when a kernel is decorated, so it holds for the whole process.
        triton_interprets=backend == "triton" and interpret,
        tiles=environment.get("VQVAE_FAST_TILES") or None,
        problem=problem,
    )


current = read(os.environ)
