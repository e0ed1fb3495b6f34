"""Compiles every Triton kernel for the device's architecture, in parallel.

The calls, the table and the judgement are those of `benchmarks.gpu_check`. The compiled kernels
stay in Triton's cache for the later parts.
"""

import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import torch

from benchmarks.gpu_check import cases
from benchmarks.gpu_check.offline import TARGETS
from benchmarks.gpu_check.table import Row, defects, rows
from benchmarks.gpu_first.step import Emit, Setting, Step
from vqvae_fast.bench import environment

_GROUPS: dict[str, Callable[[], list[cases.Case]]] = {
    "search": lambda: list(cases.cases()),
    "residual": lambda: list(cases.residual_cases()),
    "other shapes": lambda: list(cases.shape_cases()),
    "sums": lambda: list(cases.sum_cases()),
}
_REHEARSED = "sm_90"


def steps(setting: Setting) -> list[Step]:
    """Return a step for each group of calls. A rehearsal compiles one call, for an H100."""
    target = _REHEARSED if setting.rehearse else _target()
    most = 1 if setting.rehearse else None

    def group(name: str) -> Step:
        return Step(name, 300, lambda emit: _compile(name, target, most, emit))

    return [group(name) for name in list(_GROUPS)[:most]]


def _target() -> str:
    major, minor = torch.cuda.get_device_capability()
    name = f"sm_{major}{minor}"
    if name not in TARGETS:
        raise RuntimeError(f"gpu_check has no target {name}, it has {', '.join(TARGETS)}")
    return name


def _compile(name: str, target: str, most: int | None, emit: Emit) -> None:
    count = len(_GROUPS[name]()[:most])
    wrong = []
    # The processes are started anew, because a forked process could not use CUDA.
    context = get_context("spawn")
    with ProcessPoolExecutor(min(count, environment.cores()), mp_context=context) as pool:
        jobs = {pool.submit(_one, name, number, target): number for number in range(count)}
        for job in as_completed(jobs):
            try:
                found = job.result()
            except Exception as error:
                wrong.append(f"call {jobs[job]}: {type(error).__name__}: {error}")
                continue
            for row, faults in found:
                emit(**row._asdict(), defects=faults)
                wrong += [f"{row.case}, {row.kernel}, D={row.dim}: {fault}" for fault in faults]
    if wrong:
        raise RuntimeError("; ".join(wrong))


def _one(name: str, number: int, target: str) -> list[tuple[Row, list[str]]]:
    """Returns the rows of one call, by number, because a call cannot be sent to another process."""
    warnings.simplefilter("ignore")
    found = rows([_GROUPS[name]()[number]], target)
    return [(row, defects(row)) for row in found]
