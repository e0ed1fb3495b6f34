"""Installing: with a compiler, without one, and what `make` says when something is missing."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from kernels import build_settings

import vqvae_fast

ROOT = Path(__file__).parents[1]
NO_COMPILER = {"CXX": "no-such-compiler", "CC": "no-such-compiler"}
PURE = f"vqvae_fast-{vqvae_fast.__version__}-py3-none-any.whl"
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
SEARCH = (
    "import torch, vqvae_fast as v;"
    "r = v.nearest_code(torch.tensor([[0.9], [2.1]]), torch.tensor([[0.0], [1.0], [2.0]]));"
    "print(r.indices.tolist(), v._native.extension is not None);"
    "from vqvae_fast.cli import main; main(['info'])"
)


def tracked():
    """The files that git tracks."""
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(filter(None, listing.stdout.split("\0")))


@pytest.fixture
def source(tmp_path):
    """A copy of what git tracks: no build of the working tree can help."""
    for name in tracked():
        target = tmp_path / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    return tmp_path / "source"


def clean_environment():
    """The environment without settings of builds, and with ninja, which is beside python."""
    ignored = ("VQVAE_FAST_", "CFLAGS", "CXXFLAGS")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(ignored)}
    return clean | {"PATH": str(Path(sys.executable).parent) + os.pathsep + clean.get("PATH", "")}


def build_wheel(source, **environment):
    """Run `pip wheel` without isolation; returns the process and the wheel, if there is one."""
    process = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-v", "."],
        cwd=source,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
    )
    return process, next(iter(source.glob("*.whl")), None)


def text_of(wheel, name):
    """The text of one file of the wheel's metadata."""
    folder = f"vqvae_fast-{vqvae_fast.__version__}.dist-info"
    return zipfile.ZipFile(wheel).read(f"{folder}/{name}").decode()


def search_with(wheel, folder):
    """Search, then run `info`, in a new process that sees this wheel before anything else."""
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", folder, wheel]
    subprocess.run(install, capture_output=True, check=True)
    return subprocess.run(
        [sys.executable, "-c", SEARCH],
        cwd=folder,
        env=clean_environment() | {"PYTHONPATH": str(folder)},
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
    assert f"compiling against torch {torch.__version__} (" in process.stdout + process.stderr
    assert "-cp310-abi3-" in wheel.name
    assert "Root-Is-Purelib: false" in text_of(wheel, "WHEEL")
    files = {file.filename: file.file_size for file in zipfile.ZipFile(wheel).infolist()}
    assert files["vqvae_fast/_C.abi3.so"] < 3e6  # with debug information it is 20e6
    assert "vqvae_fast/py.typed" in files
    searched = search_with(wheel, tmp_path / "site")
    assert searched.stdout.startswith("[1, 2] True\n"), searched.stderr
    assert f"contract {vqvae_fast._version.EXTENSION_CONTRACT}, torch {torch.__version__}\n" in (
        searched.stdout
    )
    assert searched.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"VQVAE_FAST_NO_EXT": "1"}, NO_COMPILER])
def test_a_wheel_without_a_compiler_works_and_says_so_once(source, tmp_path, environment):
    process, wheel = build_wheel(source, **environment)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    assert (process.stdout + process.stderr).count("the C++ extension was not built (") == 1
    assert wheel.name == PURE
    assert "Root-Is-Purelib: true" in text_of(wheel, "WHEEL")
    assert not any("_C." in name for name in zipfile.ZipFile(wheel).namelist())
    searched = search_with(wheel, tmp_path / "site")
    assert searched.stdout.startswith("[1, 2] False\n"), searched.stderr
    assert "C++: not available: the C++ extension was not built" in searched.stdout
    assert searched.stderr.count("exact but slower") == 1


@pytest.mark.slow
def test_no_library_of_an_earlier_build_is_in_a_wheel_without_a_compiler(source):
    build_wheel(source, **NO_COMPILER)
    (package,) = source.glob("build/lib*/vqvae_fast")
    for suffix in EXTENSION_SUFFIXES:
        (package / f"_C{suffix}").touch()
    (source / PURE).unlink()
    _, wheel = build_wheel(source, **NO_COMPILER)
    assert wheel.name == PURE
    assert not any("_C." in name for name in zipfile.ZipFile(wheel).namelist())


@pytest.fixture
def no_torch(tmp_path):
    """A folder in which the import of torch fails, for PYTHONPATH."""
    (tmp_path / "torch.py").write_text("raise ImportError('there is no torch')")
    return str(tmp_path)


@pytest.mark.slow
def test_a_build_without_torch_says_so(source, no_torch):
    process, wheel = build_wheel(source, PYTHONPATH=no_torch)
    assert wheel.name == PURE
    said = "the C++ extension was not built (torch cannot be imported: there is no torch)"
    assert said in process.stdout + process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("lack", ["compiler", "wish", "torch"])
def test_a_required_extension_that_cannot_be_built_is_an_error(source, lack, no_torch):
    lacking = {
        "compiler": NO_COMPILER,
        "wish": {"VQVAE_FAST_NO_EXT": "1"},
        "torch": {"PYTHONPATH": no_torch},
    }
    process, wheel = build_wheel(source, VQVAE_FAST_REQUIRE_EXT="1", **lacking[lack])
    assert process.returncode != 0
    assert wheel is None
    reasons = {
        "compiler": "no-such-compiler",
        "wish": "VQVAE_FAST_REQUIRE_EXT=1 is set, but VQVAE_FAST_NO_EXT=1 is set",
        "torch": "VQVAE_FAST_REQUIRE_EXT=1 is set, but torch cannot be imported: there is no torch",
    }
    assert reasons[lack] in process.stdout + process.stderr


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_an_isolated_build_fetches_torch_only_to_compile(monkeypatch, tmp_path, kind):
    backend = runpy.run_path(str(ROOT / "build_backend.py"))
    required = backend[f"get_requires_for_build_{kind}"]
    monkeypatch.chdir(tmp_path)  # setuptools writes its notes here
    monkeypatch.setattr(sys, "argv", ["setup.py"])
    monkeypatch.setenv("VQVAE_FAST_NO_EXT", "0")
    assert "torch>=2.10" in required()
    monkeypatch.setenv("VQVAE_FAST_NO_EXT", "1")
    assert required() == []


@pytest.mark.slow
def test_the_source_archive_is_whole(source, no_torch, tmp_path):
    """It is built without torch, and holds what git tracks; a wheel from it is the tree's."""
    command = "import setuptools.build_meta as backend; backend.build_sdist('dist')"
    environment = clean_environment() | {"PYTHONPATH": no_torch}
    subprocess.run(
        [sys.executable, "-c", command],
        cwd=source,
        env=environment,
        capture_output=True,
        check=True,
    )
    (made,) = (source / "dist").iterdir()
    folder = f"vqvae_fast-{vqvae_fast.__version__}"
    assert made.name == f"{folder}.tar.gz"
    with tarfile.open(made) as archive:
        files = {m.name.removeprefix(f"{folder}/") for m in archive.getmembers() if m.isfile()}
        archive.extractall(tmp_path, filter="data")
    of_setuptools = {"PKG-INFO", "setup.cfg"}
    assert {f for f in files if "egg-info" not in f} == tracked() | of_setuptools
    wheels = [build_wheel(tree, VQVAE_FAST_NO_EXT="1")[1] for tree in (source, tmp_path / folder)]
    names = [sorted(zipfile.ZipFile(wheel).namelist()) for wheel in wheels]
    assert names[0] == names[1]
    package = {name for name in names[0] if "dist-info" not in name}
    assert package == {name for name in tracked() if name.startswith("vqvae_fast/")}
    metadata = text_of(wheels[1], "METADATA")
    assert "Description-Content-Type: text/markdown" in metadata
    assert "\n# vqvae_fast\n" in metadata
    assert re.findall(r"\]\((?!#|https://)", metadata) == []


@pytest.mark.parametrize(
    ("environment", "compiler", "linker"),
    [
        ({}, ["-g0"], ["-Wl,-s"]),
        ({"CFLAGS": "-O2 -march=native"}, ["-g0"], ["-Wl,-s"]),
        ({"CFLAGS": "-O0 -g"}, ["-g"], []),
        ({"CXXFLAGS": "-ggdb3"}, ["-ggdb3"], []),
    ],
)
def test_debug_information_is_for_those_who_ask(monkeypatch, environment, compiler, linker):
    for name in ("CFLAGS", "CXXFLAGS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", "linux")
    assert build_settings()["debug_flags"]() == (compiler, linker)


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
