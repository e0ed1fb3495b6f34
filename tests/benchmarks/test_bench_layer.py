"""The layer benchmark: a smoke run over every layer that is here, and what it refuses."""

import dataclasses
import json

import pytest
import torch

from benchmarks import layer as command
from vqvae_fast.bench import layer
from vqvae_fast.bench.data import Shape, feature_map, gaussian
from vqvae_fast.bench.peers import LAYER_PEERS
from vqvae_fast.bench.peers.base import StepResult


def test_smoke_run_of_every_layer(tmp_path, capsys):
    out = tmp_path / "layer.json"
    command.main(["--quick", "--shapes", "128,40,8", "--no-memory", "--json", str(out)])
    record = json.loads(out.read_text())
    table = capsys.readouterr().out
    (entry,) = record["results"]
    expected = {peer.name for peer in LAYER_PEERS if peer.unavailable() is None}
    assert set(entry["contenders"]) == expected
    assert {peer.name for peer in LAYER_PEERS} == expected | set(record["skipped"])
    assert {"ours (EMA)", "ours (gradient)"} <= expected
    for name, line in entry["contenders"].items():
        assert line["violating_rows"] == 0.0, name
        assert line["times_slower_than_ours"]["median"] > 0
        assert f"| {name} " in table


def test_wrong_layer_of_ours_is_never_timed(monkeypatch):
    (right, *_) = LAYER_PEERS
    for spoil in (
        lambda step: StepResult(step.quantized + 1.0, step.grad_z),
        lambda step: StepResult(step.quantized, step.grad_z * 1.01),
    ):
        wrong = dataclasses.replace(right, build=_spoiled(right.build, spoil))
        monkeypatch.setattr(layer, "LAYER_PEERS", (wrong,))
        with pytest.raises(layer.WrongLayerError, match=r"ours \(EMA\)"):
            layer.compare(gaussian(Shape(64, 16, 4)), 1, 0.0)


@pytest.mark.parametrize("peer", LAYER_PEERS, ids=lambda peer: peer.name)
def test_inference_gives_the_nearest_codes_and_learns_nothing(peer):
    if reason := peer.unavailable():
        pytest.skip(reason)
    vectors = gaussian(Shape(64, 16, 4))
    call = peer.infer(feature_map(vectors.z), vectors.codebook)
    first = call()
    assert layer.check_output(peer, vectors, first) == 0.0
    assert not first.requires_grad
    assert torch.equal(first, call())


def test_a_wrong_output_of_ours_is_refused():
    (ours, *_) = LAYER_PEERS
    vectors = gaussian(Shape(64, 16, 4))
    wrong = ours.infer(feature_map(vectors.z), vectors.codebook)() + 1.0
    with pytest.raises(layer.WrongLayerError, match=r"ours \(EMA\): .* not nearest"):
        layer.check_output(ours, vectors, wrong)


def _spoiled(build, spoil):
    def spoiled_build(fmap, codebook):
        step = build(fmap, codebook)
        return lambda: spoil(step())

    return spoiled_build
