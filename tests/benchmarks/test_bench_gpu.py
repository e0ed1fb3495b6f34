"""The GPU benchmark, as far as it goes without a GPU: a CPU stands in for the device."""

import dataclasses
import json
import time
import types

import numpy as np
import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import contest, device, layer, residual, search, sums
from benchmarks.gpu.goals import Goal, goals, whole_call
from benchmarks.gpu.report import markdown
from vqvae_fast.bench import environment
from vqvae_fast.bench.contest import InexactError
from vqvae_fast.bench.data import Shape, gaussian
from vqvae_fast.bench.interleave import summarise
from vqvae_fast.bench.peers import (
    GPU_RESIDUAL_PEERS,
    GPU_SEARCH_PEERS,
    LAYER_PEERS,
    OURS,
    SUM_PEERS,
)
from vqvae_fast.bench.peers.base import SearchPeer

SHAPE = Shape(64, 40, 8)


class Stand(device.Gpu):
    """A CPU in the place of the GPU: everything but its clock and its counters."""

    def __init__(self, name="NVIDIA H100 80GB HBM3"):
        self.device, self.name = torch.device("cpu"), name

    def seconds(self, call):
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    def seconds_in_graph(self, call):
        return self.seconds(call)

    def peak_bytes(self, call):
        call()
        return 1 << 20

    def limits(self, size=16):
        return super().limits(size)


@pytest.fixture
def stand(monkeypatch):
    about = types.SimpleNamespace(
        major=9, minor=0, multi_processor_count=132, total_memory=80 * 2**30, uuid="1234"
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: about)
    monkeypatch.setattr(command, "Gpu", Stand)
    monkeypatch.setattr(command, "why_not", lambda: None)
    return Stand()


def test_the_clock_of_the_device(monkeypatch):
    """Long calls are timed once, others by do_bench; both in seconds. CUDA itself is made up."""
    testing = pytest.importorskip("triton.testing")
    took = {"milliseconds": 3.0}

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            pass

        def elapsed_time(self, end):
            return took["milliseconds"]

    def do_bench(call, warmup, rep, return_mode):
        assert return_mode == "median"
        call()
        return 2.0

    made = {
        "Event": Event,
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "memory_allocated": lambda: 100,
        "reset_peak_memory_stats": lambda: None,
        "max_memory_allocated": lambda: 170,
        "current_device": lambda: 0,
        "get_device_name": lambda _: "a name",
    }
    for name, value in made.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(testing, "do_bench", do_bench)
    monkeypatch.setattr(testing, "do_bench_cudagraph", lambda call, return_mode: 1.0)
    calls = []
    gpu = device.Gpu()
    assert (gpu.device, gpu.name) == (torch.device("cuda:0"), "a name")
    assert gpu.seconds(lambda: calls.append(1)) == 0.002
    assert len(calls) == 2
    assert gpu.seconds_in_graph(lambda: None) == 0.001
    took["milliseconds"] = 400.0
    assert gpu.seconds(lambda: calls.append(1)) == 0.4
    assert len(calls) == 3
    assert gpu.peak_bytes(lambda: calls.append(1)) == 70
    assert len(calls) == 4
    gpu.release()


def test_a_capture_that_fails(monkeypatch):
    """The graph's time of a peer is left out; of ours it is an error, since graphs are promised."""

    class NoGraphs(Stand):
        def seconds(self, call):
            return 1e-4

        def seconds_in_graph(self, call):
            raise RuntimeError("operation not permitted when stream is capturing")

    peer = contest.Contender("peer", False, None, lambda: list, lambda _: 0.0, True)
    outcome = contest.compete([peer], lambda _: "ours", NoGraphs(), 1)
    assert outcome.lines["peer"]["seconds_in_graph"] is None
    with pytest.raises(RuntimeError, match="stream is capturing"):
        contest.compete([peer._replace(ours=True)], lambda _: "ours", NoGraphs(), 1)


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main([]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "benchmarks.gpu: no CUDA device: torch.cuda.is_available() is false, "
        "and nothing was measured\n"
    )


@pytest.mark.slow
def test_the_whole_of_it(stand, tmp_path, capsys):
    z, codebook = np.random.default_rng(0).standard_normal((2, 50, 6), dtype=np.float32)
    np.savez(tmp_path / "latents.npz", z=z, codebook=codebook[:30])
    out = tmp_path / "gpu.json"
    given = ["--shapes", "64,40,8", "--json", str(out), "--rounds", "2"]
    status = command.main([*given, "--latents", str(tmp_path / "latents.npz")])
    text = capsys.readouterr().out
    assert status == 0, text
    assert text.strip() == out.with_suffix(".md").read_text().strip()
    record = json.loads(out.read_text())
    assert [(e["kind"], e["dtype"], e["data"]) for e in record["results"]] == [
        ("search", "float32", "Gaussian"),
        ("search", "bfloat16", "Gaussian"),
        ("layer", "float32", "Gaussian"),
        ("segment sum", "float32", "uniform segments"),
        ("segment sum", "float32", "half of the rows in one segment"),
        ("residual", "float32", "2 stages"),
        ("search", "float32", "trained"),
    ]
    peers = {
        "search": GPU_SEARCH_PEERS,
        "layer": LAYER_PEERS,
        "segment sum": SUM_PEERS,
        "residual": GPU_RESIDUAL_PEERS,
    }
    for entry in record["results"]:
        assert "error" not in entry
        named = {*entry["contenders"], *entry["failed"], *entry["skipped"]}
        assert named == {peer.name for peer in peers[entry["kind"]]}
        for name, line in entry["contenders"].items():
            assert line["seconds"]["median"] > 0
            assert len(line["seconds"]["rounds"]) == 2
            assert name in text
            if name.startswith("ours"):
                assert line["violating"] == 0.0
    assert record["machine"] == "nvidia-h100-80gb-hbm3"
    assert record["command"].startswith("python -m benchmarks.gpu")
    assert str(tmp_path) not in out.read_text() + text
    assert "not measured (the shape was not run)" in text
    assert all(figure > 0 for figure in record["limits"].values())


def test_what_the_time_does_not_suffice_for_is_named(stand, tmp_path, capsys):
    out = tmp_path / "gpu.json"
    given = ["--shapes", "64,40,8", "--only", "sums", "--json", str(out), "--seconds", "-1"]
    assert command.main(given) == 0
    assert json.loads(out.read_text())["results"] == []
    assert "- segment sum 64x40x8 uniform segments float32: the -1 sec" in capsys.readouterr().out


def test_an_error_of_ours_is_in_the_table_and_in_the_status(stand, tmp_path, capsys, monkeypatch):
    wrong = dataclasses.replace(OURS, prepare=_shifted)
    monkeypatch.setattr(search, "GPU_SEARCH_PEERS", (wrong,))
    out = tmp_path / "gpu.json"
    assert command.main(["--shapes", "64,40,8", "--only", "search", "--json", str(out)]) == 1
    said = capsys.readouterr()
    assert "FAILED: InexactError: " in said.out
    assert "of ours's rows at 64x40x8 (Gaussian, float32) chose a code that is not" in said.err


def test_every_job_of_the_full_run_is_listed(stand):
    options = types.SimpleNamespace(shapes=None, only=command.KINDS, run=[], latents=[])
    named = [job.name for job in command.jobs(options, stand)]
    assert len(named) == len(set(named)) == 18 + 4 + 6 + 4 + 16
    assert named[1] == "search 65536x8192x8 Gaussian bfloat16"


def test_a_peer_that_fails_is_a_line_of_the_table(monkeypatch):
    def no_memory(z, codebook):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 256 GiB")

    def breaks(z, codebook):
        raise RuntimeError("first line\nsecond line")

    def out_of_range(z, codebook):
        return lambda: torch.full((len(z),), len(codebook))

    peers = (
        OURS,
        SearchPeer("large", "", no_memory),
        SearchPeer("broken", "", breaks),
        SearchPeer("wild", "", out_of_range),
        SearchPeer("wrong", "", _shifted),
    )
    monkeypatch.setattr(search, "GPU_SEARCH_PEERS", peers)
    entry = search.compare(gaussian(SHAPE), Stand(), 2)
    assert entry["failed"] == {
        "large": "out of memory",
        "broken": "RuntimeError: first line",
        "wild": "ValueError: indices must be from 0 to K - 1, got 40 to 40",
    }
    assert entry["contenders"]["wrong"]["violating"] == 1.0
    assert set(entry["contenders"]) == {"ours", "wrong"}


@pytest.mark.slow
def test_memory_that_runs_out_while_timing(monkeypatch):
    class Small(Stand):
        def seconds(self, call):
            if call() is None:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return 1.0

    def contender(name, result):
        return contest.Contender(name, False, None, lambda: lambda: result, lambda _: 0.0, False)

    for rival, ratio in (("fits", [1.0, 1.0]), ("does not", None)):
        outcome = contest.compete(
            [contender("fits", 1), contender("does not", None)],
            lambda _, rival=rival: rival,
            Small(),
            2,
        )
        assert outcome.failed == {"does not": "out of memory"}
        assert set(outcome.lines) == {"fits"}
        got = outcome.lines["fits"]["times_slower_than_ours"]
        assert (got and got["rounds"]) == ratio


def test_a_wrong_sum_of_ours_is_never_timed(monkeypatch):
    def one_more(src, indices, count):
        right = SUM_PEERS[0].prepare(src, indices, count)
        return lambda: (right()[0] + 1e-3, right()[1])

    wrong = dataclasses.replace(SUM_PEERS[0], prepare=one_more)
    monkeypatch.setattr(sums, "SUM_PEERS", (wrong,))
    with pytest.raises(sums.WrongSumError, match="of ours's sums or counts are wrong"):
        sums.compare(SHAPE, False, Stand(), 1, torch.device("cpu"))


def test_a_wrong_stage_of_ours_is_never_timed(monkeypatch):
    def other_code_in_the_last_stage(z, codebooks):
        indices = GPU_RESIDUAL_PEERS[0].prepare(z, codebooks)()
        indices[:, -1] = (indices[:, -1] + 1) % codebooks.shape[1]
        return lambda: indices

    wrong = dataclasses.replace(GPU_RESIDUAL_PEERS[0], prepare=other_code_in_the_last_stage)
    monkeypatch.setattr(residual, "GPU_RESIDUAL_PEERS", (wrong,))
    with pytest.raises(InexactError, match="of a stage's rows of ours"):
        residual.compare(SHAPE, 2, Stand(), 1, torch.device("cpu"))


def test_layers_are_compared_with_ours_that_learns_alike():
    entry = layer.compare(gaussian(SHAPE), Stand(), 2)
    for name in ("ours (EMA)", "ours (gradient)"):
        assert entry["contenders"][name]["times_slower_than_ours"]["rounds"] == [1.0, 1.0]


def _searched(dtype, shape, **seconds):
    own = summarise([seconds["ours"]])
    lines = {
        name: {
            "seconds": summarise([value])._asdict(),
            "seconds_in_graph": None,
            "times_slower_than_ours": {"median": value / own.median},
        }
        for name, value in seconds.items()
    }
    lines = {name.replace("torch", "torch addmm+argmin"): line for name, line in lines.items()}
    lines = {name.replace("flash", "flash-kmeans"): line for name, line in lines.items()}
    return {
        "kind": "search",
        "dtype": dtype,
        "data": "Gaussian",
        "shape": shape._asdict(),
        "contenders": lines,
        "failed": {},
        "skipped": {"flash-kmeans": "flash-kmeans is not installed"},
    }


def _goal(made: list[Goal], *words: str) -> Goal:
    (found,) = [goal for goal in made if all(word in goal.goal for word in words)]
    return found


def test_goals_are_judged():
    shape = Shape(65536, 8192, 64)
    entries = [
        _searched("float32", shape, ours=0.0002, torch=0.0007),
        _searched("bfloat16", shape, ours=0.0001, flash=0.000175),
    ]
    made = goals(entries, "NVIDIA H100 PCIe")
    time_wide = _goal(made, "search of", "K=8192, D=64", "float32")
    assert (time_wide.met, time_wide.gap) == (False, "1.60 times short of it")
    assert _goal(made, "search of", "K=8192, D=64", "bfloat16").met is True
    over_torch = _goal(made, "over torch", "K=8192, D=64")
    assert over_torch.measured == pytest.approx(3.5)
    assert (over_torch.met, over_torch.gap) == (False, "1.14 times short of it")
    assert _goal(made, "over flash", "K=8192, D=64").met is True
    assert _goal(made, "over flash", "K=8192, D=256").gap == "not measured (the shape was not run)"
    assert _goal(made, "layer").gap == "not measured (the layer was not run)"
    elsewhere = _goal(goals(entries, "NVIDIA A100"), "over torch", "K=8192, D=64")
    assert (elsewhere.met, elsewhere.gap) == (None, "not judged: the goal is for an H100 or H200")


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA H200 NVL"])
def test_goals_are_judged_on_every_h100_and_h200(name):
    shape = Shape(65536, 8192, 64)
    entries = [_searched("float32", shape, ours=0.000125, torch=0.0007)]
    assert _goal(goals(entries, name), "search of", "K=8192, D=64", "float32").met is True
    judged = whole_call(shape, "float32", 0.00025, name)
    assert (judged.target, judged.met, judged.gap) == (0.125, False, "2.00 times short of it")
    assert whole_call(shape, "float32", 0.000125, "NVIDIA A100").met is None
    assert whole_call(Shape(65536, 8192, 65), "float32", 0.000125, name) is None


def test_a_call_is_judged_by_its_time_in_a_graph():
    entries = [_searched("float32", Shape(65536, 8192, 64), ours=0.0002)]
    goal = _goal(goals(entries, "H100"), "search of", "K=8192, D=64", "float32")
    assert (goal.measured, goal.met) == (pytest.approx(0.2), False)
    entries[0]["contenders"]["ours"]["seconds_in_graph"] = 0.0001
    goal = _goal(goals(entries, "H100"), "search of", "K=8192, D=64", "float32")
    assert (goal.measured, goal.met) == (pytest.approx(0.1), True)


def test_a_missing_peer_is_why_a_goal_is_not_judged():
    entries = [_searched("bfloat16", Shape(65536, 8192, 64), ours=0.0001)]
    goal = _goal(goals(entries, "NVIDIA H100"), "over flash", "K=8192, D=64")
    assert goal.met is None
    assert goal.gap == "not measured (flash-kmeans: flash-kmeans is not installed)"


def test_goals_of_the_layer():
    def entry(codes, times):
        line = {"times_slower_than_ours": {"median": times}}
        return {
            "kind": "layer",
            "dtype": "float32",
            "data": "Gaussian",
            "shape": Shape(64, codes, 8)._asdict(),
            "contenders": {"ours (EMA)": {}, "peer": line},
            "failed": {"other peer": "out of memory"},
            "skipped": {},
        }

    made = [g for g in goals([entry(512, 3.0), entry(8192, 12.0)], "H100") if "layer" in g.goal]
    assert [(g.goal, g.met) for g in made] == [
        ("layer over peer, N=64, K=8192, D=8", True),
        ("layer over other peer, N=64, K=8192, D=8", None),
    ]


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"),
        ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090"),
        ("", "unknown-gpu"),
    ],
)
def test_device_names_are_folder_names(name, slug):
    assert environment.device_slug(name) == slug


def test_a_missing_driver_tool_is_no_error(monkeypatch):
    monkeypatch.setattr(device.shutil, "which", lambda _: None)
    assert device._driver("GPU-1234") == {}


def test_the_driver_is_asked_for_the_current_device(stand, monkeypatch):
    """nvidia-smi counts all GPUs of the machine, torch those of CUDA_VISIBLE_DEVICES."""
    asked = []

    def run(command, **options):
        asked.extend(command)
        return types.SimpleNamespace(returncode=0, stdout="595.58, 700.00 W, 1980 MHz\n")

    monkeypatch.setattr(device.shutil, "which", lambda _: "nvidia-smi")
    monkeypatch.setattr(device.subprocess, "run", run)
    assert stand.describe()["gpu"]["power_limit"] == "700.00 W"
    assert "--id=GPU-1234" in asked


def test_the_report_shows_goals_that_are_not_met(stand):
    entries = [_searched("float32", Shape(65536, 8192, 64), ours=0.0002, torch=0.0007)]
    for line in entries[0]["contenders"].values():
        line |= {"peak_bytes": 1, "seconds_in_graph": None, "violating": 0.0, "tflops": 1.0}
        line["times_slower_than_ours"] |= {"q25": 1.0, "q75": 1.0}
    entries[0]["failed"] = {"torch.compile": "out of memory"}
    record = stand.describe() | {
        "rounds": 1,
        "limits": stand.limits(),
        "timed": {},
        "left_out": [],
        "results": entries,
        "goals": [goal._asdict() for goal in goals(entries, "H100")],
    }
    text = markdown(record)
    assert "| NO  | 1.14 times short of it" in text
    assert "| torch.compile      | out of memory" in text


def _shifted(z, codebook):
    right = OURS.prepare(z, codebook)
    return lambda: (right() + 1) % len(codebook)
