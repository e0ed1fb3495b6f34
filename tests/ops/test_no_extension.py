"""Without the compiled module, or with one that does not load: slower, exact, and said once."""

import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
from kernels import INSTRUCTION_SETS

import vqvae_fast

PACKAGE = Path(vqvae_fast.__file__).parent
# Each use of the package that could warn again, and a result that shows that it works.
USE = """
import torch, vqvae_fast
from vqvae_fast import _native, functional
z, codebook = torch.eye(3, requires_grad=True), torch.eye(3).flip(0)
for _ in range(2):
    got = vqvae_fast.quantize(z, codebook)
    assert vqvae_fast.nearest_code(z, codebook).indices.tolist() == [2, 1, 0]
    assert vqvae_fast.segment_sum(z, got.indices, 3).counts.tolist() == [1, 1, 1]
got.loss.backward()
print("extension:", _native.extension is not None, "reason:", _native.reason)
"""


def python(code, package=PACKAGE, **variables):
    env = {k: v for k, v in os.environ.items() if not k.startswith("VQVAE_FAST_")}
    env |= {"PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        env=env,
        cwd=package.parent,
        capture_output=True,
        text=True,
    )


def copy_without_module(tmp_path):
    return Path(
        shutil.copytree(
            PACKAGE,
            tmp_path / "vqvae_fast",
            ignore=shutil.ignore_patterns("_C.*", "__pycache__"),
        )
    )


def warnings_of(done):
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if "vqvae_fast:" in line]


def test_switched_off():
    done = python(USE, VQVAE_FAST_NO_EXT="1")
    (warning,) = warnings_of(done)
    assert "VQVAE_FAST_NO_EXT=1 is set; searches run in plain PyTorch" in warning
    assert "extension: False reason: VQVAE_FAST_NO_EXT=1 is set" in done.stdout


def test_not_built(tmp_path):
    done = python(USE, copy_without_module(tmp_path))
    (warning,) = warnings_of(done)
    assert "the C++ extension was not built" in warning
    assert "extension: False" in done.stdout


def test_broken(tmp_path):
    package = copy_without_module(tmp_path)
    (package / f"_C{EXTENSION_SUFFIXES[0]}").write_bytes(b"this is not a library")
    done = python(USE, package)
    (warning,) = warnings_of(done)
    assert "the C++ extension is there but does not load: " in warning
    assert "_C" in warning.partition("does not load: ")[2]  # the loader's own reason
    assert "extension: False" in done.stdout


@pytest.mark.skipif(not INSTRUCTION_SETS, reason="the C++ extension is not there")
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_an_instruction_set_by_environment(isa):
    done = python(USE + "print('isa:', _native.extension.cpu_isa())", VQVAE_FAST_CPU_ISA=isa)
    assert warnings_of(done) == []
    assert f"isa: {isa}" in done.stdout


@pytest.mark.skipif(not INSTRUCTION_SETS, reason="the C++ extension is not there")
def test_an_instruction_set_that_is_not_there():
    done = python(USE, VQVAE_FAST_CPU_ISA="nonsense")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "ValueError: VQVAE_FAST_CPU_ISA: the CPU instruction set must be one that this machine has"
    )
    assert last.endswith("got 'nonsense'")


@pytest.mark.skipif(
    os.environ.get("VQVAE_FAST_REQUIRE_EXT") != "1", reason="VQVAE_FAST_REQUIRE_EXT is not set"
)
def test_the_extension_is_there_where_it_is_required():
    assert INSTRUCTION_SETS
