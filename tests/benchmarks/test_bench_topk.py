"""The benchmark of the k nearest codes: a smoke run over every way, and what it refuses."""

import dataclasses
import json

import pytest
import torch

from benchmarks import topk
from vqvae_fast.bench.data import Shape
from vqvae_fast.bench.exactness import violating_share_of_top
from vqvae_fast.bench.peers import top_code_peers


def test_smoke_run_of_every_way(tmp_path, capsys):
    out = tmp_path / "topk.json"
    topk.main(["--quick", "--json", str(out)])
    record, table = json.loads(out.read_text()), capsys.readouterr().out
    here = {peer.name for peer in top_code_peers(1) if peer.unavailable() is None}
    assert {peer.name for peer in top_code_peers(1)} == here | set(record["skipped"])
    assert [entry["k"] for entry in record["results"]] == list(topk.QUICK_NUMBERS)
    for entry in record["results"]:
        assert set(entry["contenders"]) == here
        assert entry["contenders"][topk.OURS]["wrong"] == 0
    assert all(f"| {name} " in table for name in here)


def test_a_wrong_code_of_ours_is_never_timed(monkeypatch):
    def spoiled(k):
        ours, *_ = top_code_peers(k)

        def prepare(z, codebook):
            call = ours.prepare(z, codebook)
            return lambda: call().flip(1)

        return (dataclasses.replace(ours, prepare=prepare),)

    monkeypatch.setattr(topk, "top_code_peers", spoiled)
    with pytest.raises(topk.WrongCodeError, match="k=3"):
        topk.compare(Shape(64, 80, 5), 3, 1, 0.0)


def test_what_is_no_answer():
    z, codebook = torch.randn(4, 3), torch.randn(9, 3)
    right = torch.cdist(z.double(), codebook.double()).topk(3, largest=False).indices
    assert violating_share_of_top(z, codebook, right) == 0
    assert violating_share_of_top(z, codebook, right.flip(1)) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match=r"must be int64 \[N=4, k\]"):
        violating_share_of_top(z, codebook, right.int())
    for wrong in (right - 20, right + 20, right[:, :1].expand(4, 3)):
        with pytest.raises(ValueError, match="different ones from 0 to 8"):
            violating_share_of_top(z, codebook, wrong)
