"""Installs what the machine lacks from the wheels that travelled, into a folder of the build."""

import importlib.metadata
import shutil
import sys

from benchmarks.gpu_first import tool
from benchmarks.gpu_first.step import PACKAGES, Emit, Setting, Step


def steps(setting: Setting) -> list[Step]:
    """A step a wheel: one that does not fit the machine leaves the others."""
    wheels = sorted(setting.wheels.glob("*.whl"))
    if not wheels:
        raise FileNotFoundError(
            f"{setting.wheels.name}/ holds no wheels: `make gpu-first-wheels` fetches them where "
            "there is a network; what the machine has must do"
        )
    # The machine's own come first, in whatever version: what was installed here before is not.
    shutil.rmtree(PACKAGES, ignore_errors=True)
    importlib.invalidate_caches()
    return [_install(path) for path in wheels]


def _install(path) -> Step:
    name, version = path.name.split("-")[:2]

    def run(emit: Emit) -> None:
        try:
            emit(version=importlib.metadata.version(name), source="the machine's own")
            return
        except importlib.metadata.PackageNotFoundError:
            pass
        command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet"]
        status, words = tool.run([*command, "--target", str(PACKAGES), str(path)])
        if status:
            raise RuntimeError(f"pip ended with {status}: {words}")
        emit(version=version, source="the wheel")

    return Step(name, 60, run)
