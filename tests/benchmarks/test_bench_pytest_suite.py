"""``pytest benchmarks/``: the suites collect, and one small case of each leaves a full record."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("pytest_benchmark")

pytestmark = pytest.mark.slow  # each test runs pytest in a process of its own
ROOT = Path(__file__).parents[2]


def _pytest(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    # pytest-benchmark measures nothing in what it takes for a worker of pytest-xdist.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | variables
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


SMALL = (
    "benchmarks/test_search.py::test_search[ours-search-vqvae-cifar10]",
    "benchmarks/test_search.py::test_search[torch-addmm+argmin-search-vqvae-cifar10]",
    "benchmarks/test_layer.py::test_layer[ours-EMA-inference-vqvae-cifar10]",
    "benchmarks/test_layer.py::test_layer[ours-gradient-forward+backward-vqvae-cifar10]",
    "benchmarks/test_sums.py::test_sums[ours-sum-dac]",
    "benchmarks/test_residual.py::test_residual[ours-inference-dac]",
    "benchmarks/test_training_step.py::test_training_step[ours-EMA-training-noise-512x64]",
)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Of one run of SMALL: id -> benchmark."""
    out = tmp_path_factory.mktemp("suite") / "out.json"
    done = _pytest(*SMALL, f"--benchmark-json={out}", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    return {case["fullname"]: case for case in json.loads(out.read_text())["benchmarks"]}


@pytest.mark.parametrize("name", SMALL)
def test_a_case_leaves_a_complete_record(records, name):
    info = records[name]["extra_info"]
    assert info["device"] == "cpu"
    assert info["threads"] == 1
    assert info["versions"]["torch"] == torch.__version__
    assert (info["isa"] is not None) == ("[ours" in name)
    assert info["data"] == ("noise" if "noise" in name else "Gaussian")
    assert info["wrong"] == 0.0
    assert info["gflops"] > 0
    if info["share_of_peak"] is None:
        assert "compiler" in info["peak_gflops"]
    else:
        # A burst of a neighbour's work may fall on the meter, hence not 1.
        assert 0 < info["share_of_peak"] < 4
        assert info["gflops"] < 4 * info["peak_gflops"]
    assert info["peak_memory"] is None or info["peak_memory"] >= 0
    assert {"cpu", "shape", "stages", "timed"} <= set(info)


def test_the_memory_of_all_pairs_is_seen(records):
    peaks = [records[name]["extra_info"]["peak_memory"] for name in SMALL[:2]]
    if None in peaks:
        pytest.skip("this kernel has no high-water mark that can be reset")
    scores = 2048 * 512 * 4
    assert peaks[0] < 0.9 * scores < peaks[1]


def test_flops_are_those_of_the_work(records):
    for name, flops in (
        (SMALL[0], 2 * 2048 * 512 * 64),
        (SMALL[4], 2400 * 8),
        (SMALL[5], 9 * 2 * 2400 * 1024 * 8),
    ):
        case = records[name]
        reached = case["extra_info"]["gflops"] * 1e9
        assert reached == pytest.approx(flops / case["stats"]["median"])


def test_ids_are_backend_mode_and_shape():
    done = _pytest("benchmarks", "--collect-only", "--full")
    assert done.returncode == 0, done.stdout + done.stderr
    ids = (
        *SMALL,
        "benchmarks/test_search.py::test_search[FAISS-search-search-trained-512x64]",
        "benchmarks/test_search.py::test_search[KeOps-search-vqgan]",
        "benchmarks/test_search.py::test_search[ours-search-4096x8192x16]",
        "benchmarks/test_layer.py::test_layer[vector-quantize-pytorch-EMA-straight-through-"
        "inference-trained-8192x256]",
        "benchmarks/test_sums.py::test_sums[torch-index_add_-deterministic-sum-ibq]",
        "benchmarks/test_residual.py::test_residual[ours-stage-by-stage-inference-mimi]",
        "benchmarks/test_residual.py::test_residual[ours-inference-trained-512x64]",
        "benchmarks/test_training_step.py::test_training_step[reference-training-photographs-"
        "8192x64]",
    )
    collected = done.stdout.splitlines()
    assert [name for name in ids if name not in collected] == []
    assert len(set(collected)) == len(collected)


def test_the_default_leaves_large_shapes_and_the_sweep_out():
    collected = _pytest("benchmarks/test_search.py", "--collect-only").stdout
    for name in ("vqgan", "llamagen", "trained-512x64", "trained-8192x64"):
        assert f"[ours-search-{name}]" in collected
    for name in ("simvq", "ibq", "trained-8192x256", "4096x8192x16"):
        assert f"[ours-search-{name}]" not in collected
    assert "deselected" in collected


@pytest.fixture
def suite(tmp_path):
    """Runs a test that uses the suites' own contest, and gives the outcome with its reasons."""

    def run(body: str) -> str:
        file = tmp_path / "test_made.py"
        file.write_text(
            "import time\nfrom benchmarks.cases import PUBLISHED_CASES, data\n"
            "from vqvae_fast.bench.peers import OURS, SEARCH_PEERS\n"
            "CASE = PUBLISHED_CASES[0]\n"
            f"def test_made(contest, monkeypatch):\n    {body}\n"
        )
        options = ("-rsf", "-p", "benchmarks.conftest", f"--rootdir={tmp_path}")
        done = _pytest(*options, str(file), OMP_NUM_THREADS="1", PYTHONPATH=_path())
        return done.stdout

    return run


def _path() -> str:
    return os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)])


def test_a_wrong_answer_of_ours_fails(suite):
    said = suite("contest(OURS, CASE, lambda: lambda: 1, lambda answer: 0.25)")
    assert "25.00% of ours's answer is wrong" in said
    assert "1 failed" in said


def test_what_takes_too_long_is_skipped_with_its_reason(suite):
    said = suite("contest(OURS, CASE, lambda: lambda: time.sleep(2.1), lambda answer: 0.0)")
    assert "a call takes 2.1 s or more, over 2 s" in said
    assert "1 skipped" in said


def test_what_does_not_fit_is_skipped_with_its_reason(suite):
    large = "CASE._replace(shape=CASE.shape._replace(n=1 << 30, k=1 << 20))"
    said = suite(f"contest(SEARCH_PEERS[1], {large}, None, None, matrices=3)")
    assert "would need 12582912 GiB for N x K numbers" in said
    assert "1 skipped" in said


def test_absent_data_is_skipped_with_its_reason(suite):
    said = suite("contest(OURS, CASE._replace(unavailable=lambda: 'no data'), None, None)")
    assert "no data" in said
    assert "1 skipped" in said
