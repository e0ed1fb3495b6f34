"""The benchmark of segment sums: a smoke run over every way, and what it refuses."""

import dataclasses
import json

import pytest
import torch

from benchmarks import sums
from vqvae_fast.bench.data import Shape
from vqvae_fast.bench.exactness import wrong_sums
from vqvae_fast.bench.peers import SUM_PEERS


def test_smoke_run_of_every_way(tmp_path, capsys):
    out = tmp_path / "sums.json"
    sums.main(["--quick", "--json", str(out)])
    record, table = json.loads(out.read_text()), capsys.readouterr().out
    here = {peer.name for peer in SUM_PEERS if peer.unavailable() is None}
    assert {peer.name for peer in SUM_PEERS} == here | set(record["skipped"])
    for entry, shape in zip(record["results"], sums.QUICK, strict=True):
        assert entry["shape"] == shape._asdict()
        assert set(entry["contenders"]) == here
        assert entry["contenders"][sums.OURS]["wrong"] == 0
    assert all(f"| {name} " in table for name in here)


def test_a_wrong_sum_of_ours_is_never_timed(monkeypatch):
    ours = SUM_PEERS[0]

    def spoiled(*arguments):
        call = ours.prepare(*arguments)
        return lambda: (call()[0] * (1 + 1e-6), call()[1])

    monkeypatch.setattr(sums, "SUM_PEERS", (dataclasses.replace(ours, prepare=spoiled),))
    with pytest.raises(sums.WrongSumError, match="64x8x5"):
        sums.compare(Shape(64, 8, 5), 1, 0.0)


def test_wrong_counts_are_wrong_sums():
    src, indices = torch.randn(9, 2), torch.arange(9) % 3
    right = torch.zeros(3, 2, dtype=torch.float64).index_add_(0, indices, src.double()).float()
    assert wrong_sums(right, torch.full((3,), 3.0), src, indices) == 0
    assert wrong_sums(right, torch.tensor([3.0, 3.0, 2.0]), src, indices) == pytest.approx(1 / 3)
