"""The benchmark of the drop-ins: a smoke run over every configuration, and what it refuses."""

import json

import pytest
import torch

from benchmarks import drop_in
from vqvae_fast.bench.data import Shape

pytestmark = pytest.mark.skipif(
    drop_in.unavailable() is not None, reason=str(drop_in.unavailable())
)


def test_smoke_run_of_every_configuration(tmp_path, capsys):
    out = tmp_path / "drop_in.json"
    drop_in.main(["--quick", "--no-memory", "--json", str(out)])
    record, table = json.loads(out.read_text()), capsys.readouterr().out
    assert [entry["configuration"] for entry in record["results"]] == list(drop_in.CONFIGURATIONS)
    for entry in record["results"]:
        assert entry["times_faster"]["median"] > 0
        assert f"| {entry['configuration']} " in table


def test_memory_is_of_the_step_asked_for():
    shape = Shape(512, 256, 8)
    call = drop_in.memory_call(f"{drop_in.OURS}:VectorQuantize (EMA)", shape)
    assert call().quantized.shape == (1, 512, 8)


def test_a_wrong_step_of_ours_is_never_timed(monkeypatch):
    build = drop_in.build

    def spoiled(package, configuration, shape):
        module = build(package, configuration, shape)
        if package == drop_in.OURS:
            with torch.no_grad():
                module._codebook.embed += 1.0
        return module

    monkeypatch.setattr(drop_in, "build", spoiled)
    with pytest.raises(drop_in.WrongStepError, match=r"VectorQuantize \(EMA\) at 96x40x16"):
        drop_in.compare(drop_in.LAYERS[0], Shape(96, 40, 16), 1, 1, False)
