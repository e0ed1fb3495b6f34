"""warm_up compiles ahead, in the first process of a host first, and never leaves one waiting."""

import json
import time
from pathlib import Path

import pytest
import torch
from process_group import run_together

import vqvae_fast
from vqvae_fast import backends, warming
from vqvae_fast.backends import Availability

WORLD = 3


def served_by_triton(device):
    return Availability("triton", "Triton", True, "pretended")


def test_on_a_cpu_there_is_nothing_to_compile(monkeypatch):
    if backends.chosen("cpu").name == "triton":
        pytest.skip("Triton's interpreter serves the CPU")
    monkeypatch.setattr(warming, "_call_all", lambda *_: pytest.fail("nothing is to be called"))
    assert vqvae_fast.warm_up(torch.zeros(4, 3), torch.zeros(5, 3)) is False


@pytest.mark.parametrize(
    ("z", "codebook", "options", "calls"),
    [
        ((6, 4), (5, 4), {}, ["nearest_code", "segment_sum", "quantize", "quantize_backward"]),
        ((2, 4, 3, 3), (5, 4), {"channel_first": True}, ["quantize", "quantize_backward"]),
        ((2, 6, 4), (2, 5, 4), {}, ["nearest_code", "segment_sum", "quantize_backward"]),
        ((6, 4), (3, 5, 4), {"residual": True}, ["residual_nearest_code"]),
    ],
)
def test_all_kernels_are_called(monkeypatch, z, codebook, options, calls):
    called = set()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.add(func.name().removeprefix("vqvae_fast::"))
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(backends, "chosen", served_by_triton)
    given = torch.randn(z), torch.randn(codebook)
    with Watch():
        assert vqvae_fast.warm_up(*given, **options) is True
    assert called >= set(calls)
    assert not any(t.requires_grad for t in given)


def test_what_excludes_each_other():
    with pytest.raises(ValueError, match="exclude each other"):
        vqvae_fast.warm_up(torch.zeros(1, 2), torch.zeros(1, 2), residual=True, channel_first=True)


def work(rank, folder, failing):
    backends.chosen = served_by_triton
    warming.backends.chosen = served_by_triton
    span = []

    def call_all(*_):
        span.append(time.time())
        if rank == failing:
            raise OSError("no compiler")
        time.sleep(0.3 if rank == 0 else 0.0)
        span.append(time.time())

    warming._call_all = call_all
    outcome = "nothing"
    try:
        outcome = str(vqvae_fast.warm_up(torch.zeros(4, 3), torch.zeros(5, 3)))
    except RuntimeError as error:
        outcome = str(error)
    Path(folder, f"{rank}.json").write_text(json.dumps([outcome, span]))


@pytest.mark.quick(1)
@pytest.mark.parametrize("failing", [None, 0, 2])
def test_the_first_process_compiles_first_and_failures_reach_all(tmp_path, failing):
    run_together(work, WORLD, tmp_path, failing)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(WORLD)]
    outcomes = [outcome for outcome, _ in found]
    spans = [span for _, span in found]
    if failing is None:
        assert outcomes == ["True"] * WORLD
        assert all(span[0] >= spans[0][1] for span in spans[1:])
    else:
        message = f"warm_up failed in process {failing}: OSError: no compiler"
        assert outcomes == [message] * WORLD
    if failing == 0:
        assert spans[1] == spans[2] == []  # the others did not begin
