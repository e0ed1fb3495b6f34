"""Installing: with a compiler, without one, and what `make` says when something is missing."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
SEARCH = (
    "import torch, vqvae_fast as v;"
    "r = v.nearest_code(torch.tensor([[0.9], [2.1]]), torch.tensor([[0.0], [1.0], [2.0]]));"
    "print(r.indices.tolist(), v._native.extension is not None)"
)


@pytest.fixture
def source(tmp_path):
    """A copy of what git tracks: no build of the working tree can help."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, tracked):
        if name.startswith(("csrc/", "vqvae_fast/")) or "/" not in name:
            target = tmp_path / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    return tmp_path / "source"


def build_wheel(source, **environment):
    """Run `pip wheel` without isolation; returns the process and the wheel, if there is one."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("VQVAE_FAST_")}
    tools = str(Path(sys.executable).parent)  # ninja lies beside python
    clean["PATH"] = tools + os.pathsep + clean.get("PATH", "")
    process = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-v", "."],
        cwd=source,
        env=clean | environment,
        capture_output=True,
        text=True,
    )
    return process, next(iter(source.glob("*.whl")), None)


def search_with(wheel, folder):
    """Search in a new process that sees this wheel before anything else."""
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", folder, wheel]
    subprocess.run(install, capture_output=True, check=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VQVAE_FAST_")}
    return subprocess.run(
        [sys.executable, "-c", SEARCH],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


def make(*arguments):
    """Run `make` in the project."""
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_a_wheel_with_a_compiler_has_the_kernels(source, tmp_path):
    process, wheel = build_wheel(source, VQVAE_FAST_REQUIRE_EXT="1")
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("vqvae_fast/_C.") for name in names)
    assert "vqvae_fast/py.typed" in names
    searched = search_with(wheel, tmp_path / "site")
    assert searched.stdout.strip() == "[1, 2] True", searched.stderr
    assert searched.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [{"VQVAE_FAST_NO_EXT": "1"}, {"CXX": "no-such-compiler", "CC": "no-such-compiler"}],
)
def test_a_wheel_without_a_compiler_works_and_says_so_once(source, tmp_path, environment):
    process, wheel = build_wheel(source, **environment)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    if "CXX" in environment:
        assert "the C++ extension was not built" in process.stdout + process.stderr
    assert not any("_C." in name for name in zipfile.ZipFile(wheel).namelist())
    searched = search_with(wheel, tmp_path / "site")
    assert searched.stdout.strip() == "[1, 2] False", searched.stderr
    assert searched.stderr.count("exact but slower") == 1


@pytest.mark.slow
def test_a_required_extension_that_cannot_be_built_is_an_error(source):
    process, wheel = build_wheel(
        source, CXX="no-such-compiler", CC="no-such-compiler", VQVAE_FAST_REQUIRE_EXT="1"
    )
    assert process.returncode != 0
    assert wheel is None


@pytest.mark.parametrize(
    ("lacking", "sentence"),
    [
        ("import venv", "vqvae_fast needs Python's venv module"),
        ("Python.h", "vqvae_fast needs Python's C headers"),
    ],
)
@needs_make
def test_make_names_the_part_of_python_that_is_missing(lacking, sentence, tmp_path):
    python = tmp_path / "python"  # fails at what mentions the missing part
    python.write_text(
        f"#!/bin/sh\ncase \"$*\" in *'{lacking}'*) exit 1;; esac\nexec '{sys.executable}' \"$@\"\n"
    )
    python.chmod(0o755)
    process = make("train", f"VENV={tmp_path / 'venv'}", f"PYTHON={python}")
    assert process.returncode != 0
    assert sentence in process.stdout
    assert not (tmp_path / "venv").exists()


@needs_make
@pytest.mark.parametrize(
    ("target", "made"), [("test", [".built"]), ("test-all", [".built", "triton-3.5.0", ".docs"])]
)
def test_a_second_make_installs_and_builds_nothing(target, made):
    if not all((Path(sys.prefix) / name).exists() for name in made):
        pytest.skip(f"this environment was not made by make {target}")
    process = make("--dry-run", target, f"VENV={sys.prefix}")
    assert process.returncode == 0
    assert "-m pytest" in process.stdout
    assert "pip install" not in process.stdout


@pytest.mark.parametrize(
    ("variable", "sentence"),
    [
        ("PYTHON", "vqvae_fast needs Python 3.10 or newer as 'no-such-tool'"),
        ("CXX", "vqvae_fast needs a C++20 compiler as 'no-such-tool'"),
    ],
)
@needs_make
def test_make_names_what_is_missing(variable, sentence, tmp_path):
    process = make("test", f"VENV={tmp_path / 'venv'}", f"{variable}=no-such-tool")
    assert process.returncode != 0
    assert sentence in process.stdout
    assert not (tmp_path / "venv").exists()
