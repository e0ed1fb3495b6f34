"""Records the machine: versions, tools, and the GPU with its driver and clocks."""

import importlib.util
import platform
import sys
import sysconfig
from pathlib import Path

from benchmarks.gpu_first import tool
from benchmarks.gpu_first.step import Emit, Setting, Step

_TOOLS = ("nvcc", "ncu", "nvidia-smi", "compute-sanitizer", "gcc", "g++", "ninja", "git")
_PACKAGES = ("torch", "triton", "numpy", "setuptools", "pytest", "flash-kmeans", "hypothesis")


def steps(setting: Setting) -> list[Step]:
    """Return separate steps, because a machine may lack any of these."""

    def gpu(emit: Emit) -> None:
        from benchmarks.gpu_first.device import device_of

        made = device_of(setting)
        if setting.rehearse:
            emit(device=made.name)
            return
        about = made.describe()
        for name in ("gpu", "backends"):
            for key, value in about[name].items():
                emit(what=key, value=value)
        emit(what="chosen backend", value=about["chosen_backend"])

    return [
        Step("python", 60, _python),
        Step("packages", 60, _packages),
        Step("tools", 60, _tools),
        Step("device", 120, gpu),
    ]


def _python(emit: Emit) -> None:
    from vqvae_fast.bench import environment

    emit(what="python", value=sys.version)
    emit(what="system", value=platform.platform())
    emit(what="processor", value=environment.cpu_model())
    emit(what="cores", value=environment.cores())
    # Triton builds its launchers with this header.
    emit(what="Python.h", value=Path(sysconfig.get_path("include"), "Python.h").exists())
    emit(what="pip", value=importlib.util.find_spec("pip") is not None)


def _packages(emit: Emit) -> None:
    from vqvae_fast.bench import environment

    found = environment.versions(_PACKAGES)
    for name in _PACKAGES:
        emit(what=name, value=found.get(name))
    import torch

    emit(what="CUDA of torch", value=torch.version.cuda)
    emit(what="architectures of torch", value=torch.cuda.get_arch_list())


def _tools(emit: Emit) -> None:
    for name in _TOOLS:
        path = tool.find(name)
        words = tool.run([path, "--version"])[1] if path else None
        emit(what=name, value=words and words.splitlines()[-1 if name == "nvcc" else 0])
    if path := tool.find("nvidia-smi"):
        emit(what="nvidia-smi shows", value=tool.run([path])[1])
