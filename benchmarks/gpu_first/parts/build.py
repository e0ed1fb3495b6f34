"""Builds the extensions in place, against the installed torch and nvcc."""

import sys

from benchmarks.gpu_first import tool
from benchmarks.gpu_first.step import ROOT, Emit, Setting, Step

_PACKAGE = ROOT / "vqvae_fast"
_SHOW = (
    "import torch; from vqvae_fast import backends\n"
    "for kind in ('cpu', 'cuda'):\n"
    "    for b in backends.backends(kind):\n"
    "        print(f'{kind}: {b.title}: {b.available}: {b.reason}')"
)


def steps(setting: Setting) -> list[Step]:
    """Return a step for the build, and one that lists the backends after it."""
    # FORCE_CUDA stays unset, because with it a failure of the CUDA extension also ends the build of
    # the C++ one. setup.py builds the CUDA extension anyway if nvcc and torch's CUDA are installed.
    nothing = {"VQVAE_FAST_NO_EXT": "1", "VQVAE_FAST_REQUIRE_EXT": "0"}
    variables = nothing if setting.rehearse else {}

    def build(emit: Emit) -> None:
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        status, words = tool.run(command, **variables)
        built = _built()
        emit(status=status, extensions=built, log=words)
        if status:
            raise RuntimeError(f"setup.py ended with {status}: {words.splitlines()[-1:]}")
        if not setting.rehearse and len(built) < 2:
            raise RuntimeError(f"of two extensions {len(built)} were built: see the log")

    def backends(emit: Emit) -> None:
        status, words = tool.run([sys.executable, "-c", _SHOW])
        emit(status=status, backends=words)
        if status:
            raise RuntimeError(f"vqvae_fast does not import: {words.splitlines()[-1:]}")

    return [Step("extensions", 500, build), Step("backends", 60, backends)]


def _built() -> list[str]:
    """Returns the extensions that this Python can import."""
    return [name for name in ("_C.abi3.so", "_cuda.abi3.so") if (_PACKAGE / name).exists()]
