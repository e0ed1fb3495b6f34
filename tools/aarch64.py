"""Builds the wheel for 64-bit Arm on another machine, and tries it in an emulator.

    python -m tools.aarch64 wheel [--out dist]
    python -m tools.aarch64 test [--torch 2.10.0] [--wheel FILE] [tests ...]

Debian's cross compiler makes the wheel, and qemu-user runs Debian's Python for Arm with a torch
from the package index. Nothing of it is installed on this machine: all lies in build/aarch64.
"""

import argparse
import shutil
import subprocess
import zipfile
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from tools.wheel import ROOT, make_sdist, make_wheel, run

FOLDER = ROOT / "build" / "aarch64"
PLATFORM = "manylinux_2_28_aarch64"
# The oldest torch that the wheel serves. Of this one the index has a build for CPUs alone, which is
# small; those from 2.11 on for Arm need CUDA's libraries, too, which are gigabytes.
OLDEST_TORCH = "2.10.0"
DEBIAN, PYTHON = "bookworm", "python3.11"
# What is taken from requirements-dev.txt beside torch.
PINNED = ("numpy", "click", "setuptools", "pytest", "hypothesis")
# One test file or more for each kernel. Those that take minutes in an emulator are left out.
TESTS = ["search_contract", "search_adversarial", "search_duplicates", "filter", "segment_sum"]
TESTS += ["gather", "residual", "residual_backward", "quantize_backward", "moving_average"]
TESTS += ["project", "composed", "packed", "packed_codebook", "instruction_sets", "functions"]
TESTS += ["validation"]
# Around the first example of the README.
BEFORE = "import torch; x = torch.randn(2, 64, 256)"
AFTER = """
from vqvae_fast import backends
assert backends.chosen("cpu").name == "cpu"
nearest = torch.cdist(x.double(), vq.codebook.double()).min(-1).values
found = (x.double() - vq.codebook[indices].double()).norm(dim=-1)
assert torch.allclose(found, nearest, rtol=1e-6)
"""


def need(tool: str, package: str) -> str:
    """The path of a program.

    Raises:
        SystemExit: it is not there. The message names the package of Debian that has it.
    """
    if (path := shutil.which(tool)) is None:
        raise SystemExit(f"{tool} was not found (Debian: apt install {package})")
    return path


def pinned(names: tuple[str, ...]) -> list[str]:
    """The lines of requirements-dev.txt for these packages and for Debian's Python."""
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    wanted = [line for line in lines if line.partition("==")[0] in names]
    return [line.partition(";")[0] for line in wanted if "python_version <" not in line]


def packages(torch: str) -> Path:
    """The folder with that torch for Arm and what the tests import; filled the first time."""
    folder = FOLDER / f"torch-{torch}"
    if not folder.exists():
        partial = FOLDER / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        # pip would choose what torch requires by this machine's name.
        command = ["uv", "pip", "install", "--only-binary", ":all:", "--target", partial]
        command += ["--python-platform", "aarch64-manylinux_2_28", "--python-version", PYTHON[6:]]
        run(*command, f"torch=={torch}", *pinned(PINNED))
        partial.rename(folder)
    return folder


def python_root() -> Path:
    """The folder with Debian's Python for Arm and the libraries of C and C++."""
    folder = FOLDER / "root"
    if not folder.exists():
        partial = FOLDER / "partial-root"
        shutil.rmtree(partial, ignore_errors=True)
        wanted = f"--include={PYTHON},libstdc++6,libgomp1,zlib1g"
        make = [need("mmdebstrap", "mmdebstrap"), "--variant=extract", "--architectures=arm64"]
        run(*make, wanted, DEBIAN, partial)
        partial.rename(folder)
    return folder


def cross_environment() -> dict[str, str]:
    """What makes setuptools build for Arm, against the oldest torch that is served."""
    prefix = "aarch64-linux-gnu"
    compilers = {"CC": "gcc", "CXX": "g++"}
    tools = {k: need(f"{prefix}-{tool}", f"g++-{prefix}") for k, tool in compilers.items()}
    libraries = packages(OLDEST_TORCH) / "torch" / "lib"
    return tools | {"_PYTHON_HOST_PLATFORM": "linux-aarch64", "LDFLAGS": f"-L{libraries}"}


def wheel(out: Path) -> Path:
    """Build the source archive and from it the wheel into a folder; returns the wheel's path."""
    return make_wheel(make_sdist(out), out, PLATFORM, cross_environment())


def unpack(made: Path) -> Path:
    """A folder with the wheel's files and the tests, without what else the tree has."""
    tree = FOLDER / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    zipfile.ZipFile(made).extractall(tree)
    for folder in ("tests", "benchmarks", "csrc"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.py"):
        shutil.copy(ROOT / file, tree)
    return tree


def first_example() -> str:
    """A program that runs the README's first example and compares its codes with torch's."""
    readme = (ROOT / "README.md").read_text()
    return BEFORE + readme.split("```python")[1].split("```")[0] + AFTER


def left_out(tests: Iterable[str]) -> list[str]:
    """The files of tests of the ops that are not among these."""
    every = (f"tests/ops/{path.name}" for path in (ROOT / "tests/ops").glob("test_*.py"))
    return sorted(set(every) - set(tests))


def summary(report: Path) -> str:
    """How many tests of a JUnit report passed and were skipped.

    Raises:
        SystemExit: none passed.
    """
    suite = ElementTree.parse(report).getroot().find("testsuite")
    skipped = int(suite.get("skipped"))
    passed = int(suite.get("tests")) - skipped
    if passed < 1:
        raise SystemExit(f"No test ran on Arm: {skipped} were skipped")
    return f"{passed} tests passed on Arm, {skipped} were skipped for the reasons above"


def test(made: Path, torch: str, tests: list[str]) -> None:
    """Import the wheel, run its command, README's first example and tests in the emulator.

    Raises:
        subprocess.CalledProcessError: one of them failed.
        SystemExit: no test ran.
    """
    root, tree = python_root(), unpack(made)
    qemu = need("qemu-aarch64", "qemu-user")
    print(run(qemu, "--version").splitlines()[0], flush=True)
    print(f"{made.name} with torch {torch}, {PYTHON} of Debian {DEBIAN}", flush=True)
    emulator = [qemu, "-L", str(root)]
    # Without a PATH no test finds a compiler, whose programs would be for this machine.
    for name, value in {
        "PATH": "",
        "PYTHONPATH": f"{tree}:{packages(torch)}",
        "VQVAE_FAST_REQUIRE_EXT": "1",
    }.items():
        emulator += ["-E", f"{name}={value}"]
    for arguments in (
        ["-m", "vqvae_fast.cli", "info"],
        ["-c", first_example()],
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={tree}/report.xml", *tests],
    ):
        subprocess.run([*emulator, root / "usr/bin" / PYTHON, *arguments], cwd=tree, check=True)
    print(summary(tree / "report.xml"))
    print("Tests of the ops that were not tried:", *left_out(tests))


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["wheel", "test"])
    parser.add_argument(
        "--out", type=Path, default=ROOT / "dist", help="folder of the wheel (dist)"
    )
    parser.add_argument("--wheel", type=Path, help="test this one instead of a new one")
    parser.add_argument("--torch", default=OLDEST_TORCH, help="version to test with (%(default)s)")
    every = [f"tests/ops/test_{name}.py" for name in TESTS]
    parser.add_argument(
        "tests", nargs="*", default=every, help="files of tests, or other of pytest's"
    )
    options = parser.parse_intermixed_args()
    if options.what == "test":
        need("qemu-aarch64", "qemu-user")  # before the wheel is built
    made = options.wheel or wheel(options.out)
    print(made, flush=True)
    if options.what == "test":
        test(made, options.torch, options.tests)


if __name__ == "__main__":
    main()
