"""The kernels that there are to test on this machine."""

import hashlib
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import host_kernels
import torch
from torch import Tensor

from vqvae_fast import _native, backends, settings
from vqvae_fast.backends.reference import ops as reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Whether the C++ kernels serve the ops, and no backend that VQVAE_FAST_BACKEND names.
SERVES_CPP = backends.chosen("cpu").name == "cpu"
# Best first; empty where there are none to choose from.
INSTRUCTION_SETS: list[str] = (
    _native.extension.available_cpu_isas()
    if _native.extension is not None and (SERVES_CPP or settings.current.triton_interprets)
    else []
)
# What an op raises for arguments that it refuses, in C++ or in Python. The public functions refuse
# them beforehand with ValueErrors; torch from 2.15 on has another translation of C++'s exceptions.
REFUSED: tuple[type[Exception], ...] = (ValueError,)
if torch.__version__ >= (2, 15):
    REFUSED += (RuntimeError,)


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
REFERENCE = Implementation(
    reference.nearest_code,
    reference.quantize,
    reference.segment_sum,
    reference.quantize_backward,
)
# The CUDA kernels' own source, compiled for the CPU.
ON_THE_HOST = "cuda on the host"
HOST_CUDA = Implementation(
    host_kernels.nearest_code,
    host_kernels.quantize,
    host_kernels.segment_sum,
    host_kernels.quantize_backward,
)


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Equal bits, but that all NaNs are equal: the contract says nothing of their sign."""
    if first.is_floating_point() and first.isnan().any():
        if not torch.equal(first.isnan(), second.isnan()):
            return False
        first, second = (t.nan_to_num(0.0, torch.inf, -torch.inf) for t in (first, second))
    first, second = (t.contiguous().flatten().view(torch.uint8) for t in (first, second))
    return torch.equal(first, second)


# The portable instruction set comes first: the others are compared with it.
EVERY_WAY = [*reversed(INSTRUCTION_SETS), *([] if host_kernels.why_not() else [ON_THE_HOST])]


def compiled(name: str) -> Implementation:
    """The kernels of one instruction set, which is chosen, or CUDA's stand-in."""
    if name == ON_THE_HOST:
        return HOST_CUDA
    _native.extension.set_cpu_isa(name)
    return KERNELS


def settled_by_filter(z: Tensor, codebook: Tensor, packed: Tensor | None = None) -> int | None:
    """How many rows of a search the integer filter settles; None where it does not serve."""
    if packed is None:
        packed = torch.empty(0, dtype=torch.uint8)
    settled = torch.ops.vqvae_fast.rows_settled_by_filter(z, codebook, packed)
    return None if settled < 0 else settled


# The instruction sets whose integer filter must serve where the machine has the set.
FILTERING = ("avx2", "avxvnni", "avx512", "avx512vnni", "avx512amx")


def filtering_sets() -> list[str]:
    """The instruction sets of this machine whose integer filter serves a search."""
    chosen = _native.extension.cpu_isa()
    pair = torch.ones(61, 32), torch.eye(1031, 32)
    found = []
    for isa in INSTRUCTION_SETS:
        _native.extension.set_cpu_isa(isa)
        if settled_by_filter(*pair) is not None:
            found.append(isa)
    _native.extension.set_cpu_isa(chosen)
    return found


def in_each(op: str) -> Callable:
    """The op in every instruction set and on CUDA's stand-in, which must return the same bits.

    The result, or the error, of the portable kernels is handed on: what a test asks of it holds for
    all of them.
    """

    def run(*arguments: object) -> object:
        wanted: object = None
        for name in EVERY_WAY:
            try:
                found = getattr(compiled(name), op)(*arguments)
            except (*REFUSED, IndexError, TypeError) as error:
                found = error
            if wanted is None:
                wanted = found
            elif isinstance(wanted, Exception):
                assert type(found) is type(wanted), f"{name} raised no {wanted!r}: {found!r}"
            else:
                assert not isinstance(found, Exception), f"{name} raised {found!r}"
                for mine, portable in zip(found, wanted, strict=True):
                    assert mine.shape == portable.shape
                    assert mine.stride() == portable.stride(), name
                    assert same_bits(mine, portable), f"{name} has other bits than portable"
        if isinstance(wanted, Exception):
            raise wanted
        return wanted

    return run


EVERY_SET = Implementation(
    in_each("nearest_code"),
    in_each("quantize"),
    in_each("segment_sum"),
    KERNELS.quantize_backward,
)


ROOT = Path(__file__).parents[2]


def build_settings(root: Path = ROOT) -> dict:
    """The flags of setup.py, which is run for its names and builds nothing."""
    lines = (root / "setup.py").read_text().rpartition("setup(**")[0]
    names: dict = {"__file__": str(root / "setup.py")}
    exec(compile(lines, "setup.py", "exec"), names)
    return names


def compiled_once(command: list[str | Path], sources: bytes) -> Path:
    """The file that ``command -o FILE`` makes: kept for each command and content of its sources."""
    words = "\0".join(map(str, command)).encode()
    made = ROOT / "build" / "tests" / hashlib.sha256(words + sources).hexdigest()[:16]
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        partial = made.with_suffix(f".{os.getpid()}")  # another process may be at it, too
        subprocess.run([*command, "-o", partial], check=True)
        partial.replace(made)
    return made
