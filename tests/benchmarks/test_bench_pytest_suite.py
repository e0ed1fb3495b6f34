"""``pytest benchmarks/``: the suites collect, and one small case leaves a complete record."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _pytest(*arguments: str) -> subprocess.CompletedProcess[str]:
    # pytest-benchmark measures nothing in what it takes for a worker of pytest-xdist.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_one_case_leaves_a_complete_record(tmp_path):
    pytest.importorskip("pytest_benchmark")
    out = tmp_path / "out.json"
    done = _pytest("-k", "test_search and ours and 2048x512x64", f"--benchmark-json={out}")
    assert done.returncode == 0, done.stdout + done.stderr
    (case,) = json.loads(out.read_text())["benchmarks"]
    assert case["name"] == "test_search[ours-2048x512x64]"
    info = case["extra_info"]
    assert info["violating_rows"] == 0.0
    assert info["gflops"] > 0
    assert {"device", "cpu", "isa", "threads", "versions", "share_of_peak"} <= set(info)


def test_every_peer_meets_every_shape():
    pytest.importorskip("pytest_benchmark")
    done = _pytest("--collect-only")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("ours-2048x65536x32", "FAISS-search-16384x8192x64", "ours-(EMA)-2048x8192x64"):
        assert f"[{name}]" in done.stdout
