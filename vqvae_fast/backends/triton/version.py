"""The installed version of Triton, and the fence that some versions leave out."""

import importlib
import importlib.metadata
import re

# Before 3.5, Triton lacked settings that the kernels read, and gave the result of an atomic to one
# thread alone, so that no program of the exact search would have been the last one.
OLDEST = (3, 5)
# The matrix units from sm_90 on read shared memory through the asynchronous proxy, and cp.async
# writes it through the generic one: a fence must stand between them. Triton puts it there since
# 3.7.1 (its pull requests 9610 and 10537); 3.5.0, 3.6.0 and 3.7.0 compile our loops without it. The
# GPUs with a major number of 12 have the units of sm_80, which read registers.
_FENCES_COPIES = (3, 7, 1)
_READ_SHARED_MEMORY = (9, 10, 11)


def installed() -> str:
    """The package's version, or the module's if the package has another name (as for ROCm)."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return str(importlib.import_module("triton").__version__)


def at_least(version: str, least: tuple[int, ...]) -> bool:
    """Whether a version's leading numbers reach ``least``; missing numbers count as 0."""
    (leading,) = re.findall(r"^v?(\d+(?:\.\d+)*)", version) or ["0"]
    numbers = [int(part) for part in leading.split(".")]
    numbers += [0] * (len(least) - len(numbers))
    return tuple(numbers[: len(least)]) >= least


def leaves_out_fence(version: str, major: int) -> bool:
    """Whether this version leaves out a fence that GPUs of this major capability need."""
    return major in _READ_SHARED_MEMORY and not at_least(version, _FENCES_COPIES)
