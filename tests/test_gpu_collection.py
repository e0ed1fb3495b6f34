"""The tests of a GPU are collected only where there is one: here it is seen that they can be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_every_file_of_gpu_tests_is_collected():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "", "tests/gpu"],
        cwd=ROOT,
        env={**os.environ, "VQVAE_FAST_GPU_TESTS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    for file in (ROOT / "tests" / "gpu").glob("test_*.py"):
        assert f"tests/gpu/{file.name}::" in done.stdout
