"""Installs packages that the machine lacks from the wheels folder, into a folder of the build."""

import importlib.metadata
import re
import shutil
import sys
from pathlib import Path

from benchmarks.gpu_first import tool
from benchmarks.gpu_first.step import PACKAGES, Emit, Setting, Step

# An installed package is too old below these major versions, which pyproject.toml requires.
_LEAST_MAJOR = {"setuptools": 77}


def steps(setting: Setting) -> list[Step]:
    """Return a step for each wheel, so that one that does not fit does not stop the others."""
    wheels = sorted(setting.wheels.glob("*.whl"))
    if not wheels:
        raise FileNotFoundError(
            f"{setting.wheels.name}/ holds no wheels: `make gpu-first-wheels` fetches them where "
            "there is a network; what the machine has must do"
        )
    # The machine's own packages take precedence in any version, so earlier installs are removed.
    shutil.rmtree(PACKAGES, ignore_errors=True)
    importlib.invalidate_caches()
    return [_install(path) for path in wheels]


def _install(path: Path) -> Step:
    name, version = path.name.split("-")[:2]

    def run(emit: Emit) -> None:
        own = _own_version(name)
        if own is not None and _major(own) >= _LEAST_MAJOR.get(name, 0):
            emit(version=own, source="the machine's own")
            return
        command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet"]
        status, words = tool.run([*command, "--target", str(PACKAGES), str(path)])
        if status:
            raise RuntimeError(f"pip ended with {status}: {words}")
        emit(version=version, source="the wheel")

    return Step(name, 60, run)


def _own_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _major(version: str) -> int:
    found = re.match(r"\d+", version)
    return int(found[0]) if found else 0
