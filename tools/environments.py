"""Clean environments, in which a release is tried as a newcomer does: no compiler, no old build."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from tools.wheel import ROOT, unpack

# What an environment gets from this one: all packages but our own, which must come from a wheel.
OURS = re.compile(r"(__editable__.*)?_*vqvae_fast.*")
# Tests that are quick and need no compiler: about two minutes of ops, of modules and of gradients.
QUICK_TESTS = (
    "tests/ops/test_functions.py",
    "tests/ops/test_search_contract.py",
    "tests/ops/test_segment_sum.py",
    "tests/ops/test_packed.py",
    "tests/ops/test_validation.py",
    "tests/nn/test_vector_quantizer.py",
    "tests/nn/test_residual_vq.py",
    "tests/nn/test_freeze.py",
)
# What these tests import beside what the package needs.
TEST_REQUIREMENTS = ("pytest", "hypothesis", "safetensors", "vector-quantize-pytorch==1.32.0")
# These parts of the source archive are moved away, so that only the installed package can serve.
NOT_OF_TESTS = ("vqvae_fast", "csrc", "setup.py")
# The minor versions of Python 3 that are looked for.
PYTHONS = range(10, 20)
# Prints the path of a Python that can make environments.
WHERE = "import sys, venv, ensurepip; print(sys.executable)"


def other_pythons() -> list[str]:
    """The Pythons on the PATH of other versions than this one, the oldest first."""
    found = []
    for minor in PYTHONS:
        name = f"python3.{minor}"
        if minor == sys.version_info.minor or shutil.which(name) is None:
            continue
        # pyenv's programs on the PATH run only a version that this variable names.
        environment = os.environ | {"PYENV_VERSION": f"3.{minor}"}
        done = subprocess.run([name, "-c", WHERE], env=environment, capture_output=True, text=True)
        if done.returncode == 0:
            found.append(done.stdout.strip())
    return found


class Environment:
    """A virtual environment whose PATH has no other programs than its own.

    Args:
        folder: where it is made.
        python: the Python that it is made of.
    """

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        subprocess.run([python, "-m", "venv", folder], check=True)

    def lend_packages(self) -> None:
        """Let it import what is installed beside this Python: torch need not be fetched again."""
        # Python 3.11 and older bring a setuptools that is too old to build the package.
        self.run("-m", "pip", "uninstall", "--yes", "--quiet", "setuptools")
        lent = self.folder / "lent"
        lent.mkdir()
        for installed in Path(sysconfig.get_path("purelib")).iterdir():
            if not OURS.fullmatch(installed.name):
                (lent / installed.name).symlink_to(installed)
        (site,) = self.folder.glob("lib/python*/site-packages")
        (site / "lent.pth").write_text(f"{lent}\n")

    def run(self, *arguments: object, cwd: Path | None = None, **variables: str) -> str:
        """Run its Python with these arguments; returns what that prints.

        Raises:
            SystemExit: it failed. The message ends with what it has said.
        """
        return self.call(self.python, *arguments, cwd=cwd, **variables)

    def call(self, *words: object, cwd: Path | None = None, **variables: str) -> str:
        """The same for a program: a path, or the name of one of its own."""
        ignored = ("VQVAE_FAST_", "PYTHON")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ignored)}
        programs = self.folder / "bin"
        done = subprocess.run(
            [str(programs / str(words[0])), *map(str, words[1:])],
            cwd=cwd or self.folder,
            env=kept | {"PATH": str(programs)} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0:
            raise SystemExit(
                f"{words} failed with status {done.returncode}:\n{done.stdout[-4000:]}"
            )
        return done.stdout

    def install(self, *what: object) -> float:
        """Install requirements or files; returns the seconds that it took."""
        began = time.perf_counter()
        self.run("-m", "pip", "install", "--quiet", *what)
        return time.perf_counter() - began

    def versions(self) -> str:
        """Its versions of Python and torch, in words."""
        python = "import platform, torch; print('Python', platform.python_version(), end=', ')"
        return self.run("-c", f"{python}; print('torch', torch.__version__)").strip()


def first_example() -> str:
    """README's first example, with the tensor that it takes, and a check of its results."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1]
    before = "import torch, vqvae_fast\nx = torch.randn(2, 5, 256)\n"
    after = "assert quantized.shape == x.shape and indices.shape == (2, 5) and loss.isfinite()\n"
    return before + example + after + "print(vqvae_fast.__file__)\n"


def walk_the_newcomers_path(environment: Environment, compiled: bool) -> str:
    """Run README's first example and `vqvae-fast info`, which it returns.

    Args:
        environment: where the package is installed.
        compiled: whether the C++ kernels must be there; else they must not.

    Raises:
        SystemExit: one of them failed, or another package than the installed one was imported.
    """
    origin = environment.run("-c", first_example()).splitlines()[-1]
    if not Path(origin).is_relative_to(environment.folder):
        raise SystemExit(f"the package was imported from {origin}, not from {environment.folder}")
    said = environment.call("vqvae-fast", "info")
    if ("-> C++ (" in said) != compiled:
        expected = "the C++ kernels" if compiled else "no C++ kernels"
        raise SystemExit(f"expected {expected}, but `vqvae-fast info` says:\n{said}")
    return said


def run_quick_tests(environment: Environment, sdist: Path) -> str:
    """Run QUICK_TESTS out of a source archive with the installed package; returns the summary.

    A warning fails no test, because other versions of Python and torch warn of other things than
    those that `make test` runs with.

    Raises:
        SystemExit: a test failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = unpack(sdist, Path(folder))
        for name in NOT_OF_TESTS:
            (source / name).rename(Path(folder, name))
        tests = [source / name for name in QUICK_TESTS]
        command = ("-m", "pytest", "-q", "-W", "default", *tests)
        said = environment.run(*command, cwd=source, VQVAE_FAST_REQUIRE_EXT="1")
    return said.splitlines()[-1]
