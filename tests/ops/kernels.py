"""The kernels that there are to test on this machine."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from vqvae_fast import _native

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Best first; empty without the extension.
INSTRUCTION_SETS: list[str] = (
    _native.extension.available_cpu_isas() if _native.extension is not None else []
)


@dataclass(frozen=True)
class Implementation:
    """One of the ways in which a call can be served."""

    nearest_code: Callable
    quantize: Callable
    segment_sum: Callable
    quantize_backward: Callable


# Whatever the dispatcher chooses for the tensors.
KERNELS = Implementation(
    lambda z, codebook: torch.ops.vqvae_fast.nearest_code(z, codebook),
    lambda z, codebook: torch.ops.vqvae_fast.quantize(z, codebook),
    lambda src, indices, count: torch.ops.vqvae_fast.segment_sum(src, indices, count),
    lambda *arguments: torch.ops.vqvae_fast.quantize_backward(*arguments),
)


ROOT = Path(__file__).parents[2]


def build_settings(root: Path = ROOT) -> dict:
    """The flags of setup.py, which is run for its names and builds nothing."""
    lines = (root / "setup.py").read_text().rpartition("setup(**")[0]
    names: dict = {"__file__": str(root / "setup.py")}
    exec(compile(lines, "setup.py", "exec"), names)
    return names
