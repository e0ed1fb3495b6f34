"""The built extensions use nothing that another version of torch or Python may lack or change."""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths

from vqvae_fast import _native

pytestmark = [
    pytest.mark.skipif(_native.extension is None, reason="the C++ extension is not there"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files"),
]
# The oldest versions that setup.py builds for.
TORCH = "-DTORCH_TARGET_VERSION=0x020a000000000000"
PYTHON = "-DPy_LIMITED_API=0x030A0000"


def run(tool: str, *arguments: str, stdin: str = "") -> str:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not there")
    command = [tool, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True).stdout


def needed_symbols(library: str) -> set[str]:
    """What a library takes from others; the C and C++ libraries give their symbols versions."""
    lines = run("nm", "-D", "--undefined-only", library).splitlines()
    fields = [line.split() for line in lines]
    return {name for kind, name in fields if kind == "U" and "@" not in name}


def declared_names() -> set[str]:
    """Every name in the stable headers of the oldest torch and Python."""
    headers = ("Python.h", "torch/csrc/stable/c/shim.h")
    source = "".join(f"#include <{header}>\n" for header in headers)
    folders = [f"-I{path}" for path in (*include_paths(), sysconfig.get_path("include"))]
    flags = ["-E", "-P", "-std=c++20", "-x", "c++", TORCH, PYTHON, *folders, "-"]
    return set(re.findall(r"\w+", run("c++", *flags, stdin=source)))


def test_the_file_is_for_every_python() -> None:
    assert Path(_native.extension.__file__).name == "_C.abi3.so"


def test_all_that_is_needed_is_stable() -> None:
    needed = needed_symbols(_native.extension.__file__)
    assert "torch_library_impl" in needed
    assert "PyModule_Create2" in needed
    assert needed - declared_names() == set()


def test_the_module_shows_python_no_more_than_itself() -> None:
    lines = run("nm", "-D", "--defined-only", _native.extension.__file__).splitlines()
    kinds = {name: kind for _, kind, name in map(str.split, lines)}
    # Weak symbols are the C++ library's templates; the linker's own names begin with a "_".
    ours = {name for name, kind in kinds.items() if kind not in "WVu" and name[0] != "_"}
    assert ours == {"PyInit__C"}


def test_what_is_not_stable_would_be_seen() -> None:
    """torch's own binding takes C++ functions of torch, and more of Python than the limited API."""
    binding = Path(torch.__file__).parent / "lib/libtorch_python.so"
    unstable = needed_symbols(str(binding)) - declared_names()
    assert any(name.startswith("_ZN2at") for name in unstable)
    assert any(name.startswith("PyFrame_") for name in unstable)
