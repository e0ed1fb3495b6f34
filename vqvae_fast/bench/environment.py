"""What was measured where: machine, versions, instruction set. No host names, no paths."""

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
# AMD hides the model of a virtual machine's processor, but not its family.
_AMD_FAMILIES = {23: "zen2", 25: "zen4", 26: "zen5"}
_NOISE_WORDS = r"\(r\)|\(tm\)|\bcpu\b|\bprocessor\b|\b\d+-core\b|@.*$|\bwith\b.*$"


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def cpu_model() -> str:
    """The processor in words, with AMD's generation where the model name lacks it."""
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
    """A readable folder name, such as amd-epyc-zen5-2c."""
    words = re.sub(_NOISE_WORDS, " ", (model or cpu_model()).lower())
    return f"{_slug(words) or 'unknown-cpu'}-{number_of_cores or cores()}c"


def device_slug(name: str) -> str:
    """The same for a GPU's name, such as nvidia-h100-80gb-hbm3."""
    return _slug(name.lower()) or "unknown-gpu"


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def isa() -> str:
    """The instruction set of this package's kernels, or why there are none."""
    if _native.extension is None:
        return f"none: {_native.reason}"
    return str(_native.extension.cpu_isa())


def versions(distributions: tuple[str, ...] = _DISTRIBUTIONS) -> dict[str, str]:
    """Versions of everything that is timed; absent packages are left out."""
    found = {"python": platform.python_version()}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def revision() -> str:
    """The commit that was measured, with a plus when files differ from it; "" outside git."""
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
    """The command line that was given, its paths cut down to their last part."""
    given = sys.argv[1:] if arguments is None else arguments
    shown = [Path(part).name if os.sep in part else part for part in given]
    return " ".join(["python", "-m", module, *shown])


def describe(module: str, threads: int) -> dict[str, object]:
    """The head of every results file."""
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
