"""The layer benchmark: a smoke run over every layer that is here, and what it refuses."""

import dataclasses
import json

import pytest

from benchmarks import layer
from benchmarks.data import Shape, gaussian
from benchmarks.peers import LAYER_PEERS
from benchmarks.peers.base import StepResult


def test_smoke_run_of_every_layer(tmp_path, capsys):
    out = tmp_path / "layer.json"
    layer.main(["--quick", "--shapes", "128,40,8", "--no-memory", "--json", str(out)])
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


def _spoiled(build, spoil):
    def spoiled_build(fmap, codebook):
        step = build(fmap, codebook)
        return lambda: spoil(step())

    return spoiled_build
