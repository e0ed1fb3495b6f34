"""What the benchmarks' figures rest on: exactness, interleaving, peak, memory, environment."""

import os

import pytest
import torch

from vqvae_fast import _native
from vqvae_fast.bench import environment, interleave, memory, peak, threads
from vqvae_fast.bench.data import Shape, feature_map, gaussian, rows_of
from vqvae_fast.bench.exactness import smallest_distances, violating_share


def test_violations_are_found_far_from_the_origin():
    z = torch.full((4, 2), 1000.0)
    codebook = torch.tensor([[1000.0, 1001.0], [1000.0, 1000.5], [0.0, 0.0]])
    smallest = smallest_distances(z, codebook)
    assert smallest.distances.tolist() == [0.25] * 4
    assert violating_share(z, codebook, torch.tensor([1, 1, 0, 1]), smallest) == 0.25
    with pytest.raises(ValueError, match="from 0 to K - 1 = 2"):
        violating_share(z, codebook, torch.tensor([1, 1, 3, 1]), smallest)
    with pytest.raises(ValueError, match=r"must be int64 \[N=4\]"):
        violating_share(z, codebook, torch.tensor([1, 1, 1]), smallest)


def test_tolerance_is_the_contracts():
    z, codebook = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([[1.0], [0.0]]).double()
    for excess, violates in ((0.5e-6, 0.0), (2e-6, 1.0)):
        # Distances 1 and (1 + excess): the first code is the nearest, the second is chosen.
        codebook[1, 0] = (1 + excess) ** 0.5
        chosen = torch.tensor([1])
        narrow = smallest_distances(z, codebook)._replace(tolerance=1e-6)
        assert violating_share(z, codebook, chosen, narrow) == violates
        assert violating_share(z, codebook, chosen, smallest_distances(z, codebook)) == 1.0


def test_rounds_alternate_and_rotate(monkeypatch):
    monkeypatch.setattr(interleave, "_REST_SECONDS", 0.0)
    log = []
    calls = {name: (lambda name=name: log.append(name)) for name in "abc"}
    timings = interleave.interleaved(calls, 2, min_seconds=0.0, between=lambda: log.append("-"))
    assert "".join(log) == "-aabbcc-bbccaa-"  # each turn: once to warm up, once timed
    assert list(timings) == ["a", "b", "c"]
    assert all(len(timing.rounds) == 2 for timing in timings.values())


def test_ratios_are_taken_round_by_round():
    ours, peer = interleave.summarise([1.0, 10.0, 2.0]), interleave.summarise([3.0, 30.0, 6.0])
    assert interleave.ratio(ours, peer).rounds == [3.0, 3.0, 3.0]
    assert ours[:3] == (2.0, 1.5, 6.0)


def test_peak_is_plausible():
    meter, reason = peak.try_meter(1)
    if meter is None:
        pytest.skip(reason)
    for _ in range(3):
        meter.sample()
    summary = meter.summary()
    assert summary["samples"] == 3
    assert summary["gflops_min"] <= summary["gflops"] <= summary["gflops_max"]
    # No core does fewer than 1 or more than 64 float32 operations a clock; a busy machine's
    # clock sample may be off by half.
    assert 1 < summary["flop_per_clock_and_thread"] < 128


def test_peak_refuses_an_unknown_instruction_set():
    if peak.try_meter(1)[0] is None:
        pytest.skip("no compiler")
    with pytest.raises(peak.PeakUnavailableError, match=r"must be one of portable.* got avx9"):
        peak.PeakMeter(1, isa="avx9")


def test_peak_says_when_there_is_no_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert peak.try_meter(1) == (None, "no C++ compiler was found (CXX, c++, g++, clang++)")


def test_memory_sees_n_x_k():
    shape = Shape(2048, 4096, 8)
    scores = memory.measure(memory.SEARCH, "torch addmm+argmin", shape, 1)
    if scores is None:
        pytest.skip("this kernel has no high-water mark that can be reset")
    size = shape.n * shape.k * 4
    # The kernel counts resident pages in batches: a few hundred KiB are lost.
    assert 0.97 * size < scores.beside_outputs < 3 * size


@pytest.mark.skipif(
    _native.extension is None, reason=f"the bound is the kernels': {_native.reason}"
)
def test_memory_of_ours_stays_below_its_bound():
    shape = Shape(4096, 16384, 16)
    ours = memory.measure(memory.SEARCH, "ours", shape, 1)
    if ours is None:
        pytest.skip("this kernel has no high-water mark that can be reset")
    assert ours.beside_outputs <= memory.search_bound(shape) < shape.n * shape.k * 4


def test_failed_measurement_says_whose():
    with pytest.raises(RuntimeError, match="measuring the memory of nobody failed"):
        memory.measure(memory.SEARCH, "nobody", Shape(1, 1, 1), 1)


@pytest.mark.parametrize(
    ("model", "cores", "slug"),
    [
        ("AMD EPYC zen5", 2, "amd-epyc-zen5-2c"),
        ("AMD EPYC 9R45 96-Core Processor zen5", 8, "amd-epyc-9r45-zen5-8c"),
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", 4, "intel-xeon-platinum-8481c-4c"),
    ],
)
def test_machine_names_are_readable(model, cores, slug):
    assert environment.machine_slug(model, cores) == slug


def test_commands_are_quoted_without_folders():
    given = ["--json", os.path.join("some", "where", "out.json"), "--rounds", "3"]
    expected = "python -m benchmarks.search --json out.json --rounds 3"
    assert environment.command("benchmarks.search", given) == expected


def test_thread_count_reaches_everybody_and_is_restored():
    faiss = pytest.importorskip("faiss")
    before = torch.get_num_threads()
    with threads.all_threads(1):
        assert torch.get_num_threads() == 1
        assert faiss.omp_get_max_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("rows", [128, 33])
def test_feature_map_and_back(rows):
    z = gaussian(Shape(rows, 1, 5)).z
    fmap = feature_map(z)
    assert fmap.is_contiguous()
    assert fmap.shape == ((2, 5, 8, 8) if rows == 128 else (1, 5, 33, 1))
    assert torch.equal(rows_of(fmap), z)
