"""Describes the machine, versions and instruction set, without host names and paths."""

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

from vqvae_fast import _native

_DISTRIBUTIONS = (
    "torch",
    "numpy",
    "faiss-cpu",
    "scikit-learn",
    "pykeops",
    "vector-quantize-pytorch",
)
# In a virtual machine AMD hides the processor's model but not its family.
_AMD_FAMILIES = {23: "zen2", 25: "zen4", 26: "zen5"}
_NOISE_WORDS = r"\(r\)|\(tm\)|\bcpu\b|\bprocessor\b|\b\d+-core\b|@.*$|\bwith\b.*$"


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpuinfo() -> dict[str, str]:
    """Returns the first processor of /proc/cpuinfo; empty if there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def cpu_model() -> str:
    """Return the processor's name, with AMD's generation if the model name lacks it."""
    info = _cpuinfo()
    model = info.get("model name") or platform.processor() or platform.machine()
    if info.get("vendor_id") == "AuthenticAMD":
        family = int(info.get("cpu family", 0))
        generation = _AMD_FAMILIES.get(family)
        if family == 25 and "avx512f" not in info.get("flags", ""):
            generation = "zen3"
        if generation:
            model = f"{model} {generation}"
    return model


def machine_slug(model: str | None = None, number_of_cores: int | None = None) -> str:
    """Return a readable folder name, such as amd-epyc-zen5-2c."""
    words = re.sub(_NOISE_WORDS, " ", (model or cpu_model()).lower())
    return f"{_slug(words) or 'unknown-cpu'}-{number_of_cores or cores()}c"


def device_slug(name: str) -> str:
    """Return a readable folder name for a GPU, such as nvidia-h100-80gb-hbm3."""
    return _slug(name.lower()) or "unknown-gpu"


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def isa() -> str:
    """Return the instruction set of this package's kernels, or why there are no kernels."""
    if _native.extension is None:
        return f"none: {_native.reason}"
    return str(_native.extension.cpu_isa())


def versions(distributions: tuple[str, ...] = _DISTRIBUTIONS) -> dict[str, str]:
    """Return the versions of everything that is timed, without absent packages."""
    found = {"python": platform.python_version()}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def revision() -> str:
    """Return the measured commit, with a plus if files differ from it, or "" outside git."""
    root = Path(__file__).parents[2]
    commit = _git(root, "rev-parse", "--short", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return commit + ("+" if commit and changed else "")


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def command(module: str, arguments: list[str] | None = None) -> str:
    """Return the command line, with each path cut down to its last part."""
    given = sys.argv[1:] if arguments is None else arguments
    shown = [Path(part).name if os.sep in part else part for part in given]
    return " ".join(["python", "-m", module, *shown])


def describe(module: str, threads: int) -> dict[str, object]:
    """Return the head of every results file."""
    return {
        "benchmark": module.rpartition(".")[2],
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command(module),
        "revision": revision(),
        "machine": machine_slug(),
        "cpu": cpu_model(),
        "cores": cores(),
        "threads": threads,
        "isa": isa(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": versions(),
    }
