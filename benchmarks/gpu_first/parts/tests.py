"""Runs tests/gpu. Warnings are not errors here, because the machine's versions may differ."""

import re
import sys

from benchmarks.gpu_first import tool
from benchmarks.gpu_first.step import ROOT, Emit, Setting, Step

_FOLDER = "tests/gpu"
_PYTEST = ("-m", "pytest", "-q", "-o", "filterwarnings=", "-W", "default", "-p", "no:cacheprovider")
_PYTEST += ("-m", "")  # with the slow tests
_REHEARSED = "test_gpu_agreement.py"
_SUMMARY = re.compile(r"(\d+) (passed|failed|error|skipped|xfailed)")


def steps(setting: Setting) -> list[Step]:
    """Return a step for each file of tests; a rehearsal runs one file on the CPU."""
    files = sorted(path.name for path in (ROOT / _FOLDER).glob("test_*.py"))
    if setting.rehearse:
        return [_step(_REHEARSED, {"VQVAE_FAST_GPU_TESTS": "cpu"})]
    return [_step(name, {"VQVAE_FAST_REQUIRE_CUDA": "1"}) for name in files]


def _step(name: str, variables: dict[str, str]) -> Step:
    def run(emit: Emit) -> None:
        command = [sys.executable, *_PYTEST, f"{_FOLDER}/{name}"]
        status, words = tool.run(command, **variables)
        last = (words.splitlines() or [""])[-1]
        counts = {what: int(count) for count, what in _SUMMARY.findall(last)}
        emit(**{what: counts.get(what, 0) for what in ("passed", "failed", "error", "skipped")})
        if status:
            raise RuntimeError(f"pytest ended with {status}:\n{words}\n{last}")

    return Step(name, 300, run)
