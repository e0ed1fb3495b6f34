"""The benchmark of whole models: a smoke run of all, and of a training step."""

import json

import pytest
import torch

from benchmarks import models
from vqvae_fast.bench.data import Shape
from vqvae_fast.bench.peers.base import needs

pytestmark = pytest.mark.skipif(
    any(needs(library, library)() for library in ("transformers", "diffusers")),
    reason="transformers or diffusers is not installed",
)


@pytest.mark.slow
def test_smoke_run_of_every_model(tmp_path, capsys):
    out = tmp_path / "models.json"
    threads = torch.get_num_threads()
    models.main(["--quick", "--json", str(out)])
    assert torch.get_num_threads() == threads
    record, table = json.loads(out.read_text()), capsys.readouterr().out
    for entry, of in zip(record["results"], models.MODELS, strict=True):
        assert entry["model"] == of.name
        assert of.name in table
        assert entry["accelerated"] > 0
        assert entry["vectors"] > 0
        assert entry["theirs_nearer"] == 0
        for part in ("quantizer", "whole"):
            assert list(entry[part]) == list(models.NAMES)
            assert entry[part]["accelerated"]["times_slower_than_ours"]["median"] == 1
    step = record["training"]
    assert step["shape"] == {"n": 32, "k": 64, "d": models.CODE_DIM}
    assert all(step[part]["own"]["seconds"]["median"] > 0 for part in ("whole", "quantizer"))
    assert record["threads"] == 1
    assert {"transformers", "diffusers"} <= set(record["versions"])


def test_a_library_that_is_missing_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "needs", lambda *names: lambda: f"{names[0]} is not installed")
    models.main(["--quick", "--json", str(tmp_path / "models.json")])
    out = capsys.readouterr().out
    assert "left out: transformers is not installed" in out
    assert "left out: diffusers is not installed" in out


def test_the_quantizers_that_are_timed_compute_the_same():
    outcomes = []
    for name in models.NAMES:
        torch.manual_seed(0)
        outcomes.append(models.quantizer_call(name, Shape(12, 64, 4))())
    for fast, own in zip(*outcomes, strict=True):
        torch.testing.assert_close(fast, own)
