"""The benchmark of few vectors: a smoke run over every contender, and what it refuses."""

import dataclasses
import json

import pytest
import torch

from benchmarks import cpu_time, small
from vqvae_fast.bench.peers import FROZEN_RESIDUAL_PEERS


def test_smoke_run_of_every_contender(tmp_path, capsys):
    out = tmp_path / "small.json"
    threads = torch.get_num_threads()
    small.main(["--quick", "--json", str(out)])
    assert torch.get_num_threads() == threads
    record, table = json.loads(out.read_text()), capsys.readouterr().out
    here = {peer.name for peer in small.CONTENDERS if peer.unavailable() is None}
    rows = [(books, n) for books in small.QUICK_BOOKS for n in small.QUICK_VECTORS]
    for entry, (books, n) in zip(record["results"], rows, strict=True):
        assert entry["shape"] == {"n": n, "k": books.k, "d": books.d}
        assert set(entry["contenders"]) == here
        assert entry["contenders"][small.OURS]["times_slower_than_ours"]["median"] == 1
    for entry, (books, n) in zip(record["residual"], rows, strict=True):
        assert entry["shape"] == {"n": n, "k": books.k, "d": books.d}
        assert set(entry["contenders"]) == {peer.name for peer in FROZEN_RESIDUAL_PEERS}
    assert record["threads"] == 1
    assert all(name in table for name in here)


def test_a_wrong_code_of_ours_is_never_timed(monkeypatch):
    ours, *others = small.CONTENDERS

    def spoiled(*arguments):
        call = ours.prepare(*arguments)
        return lambda: (call() + 1) % 300

    wrong = dataclasses.replace(ours, prepare=spoiled)
    monkeypatch.setattr(small, "CONTENDERS", (wrong, *others))
    with pytest.raises(cpu_time.WrongCodeError, match="tiny"):
        small.compare(small.QUICK_BOOKS[0], 5, 1, 0.0)


def test_cpu_time_counts_one_search():
    calls = []
    seconds = cpu_time.cpu_seconds(lambda: calls.append(sum(range(20000))), 4, 0.01)
    assert 0 < seconds < 0.01
    assert 0.01 <= 4 * seconds * (len(calls) - 1) < 0.1  # the first was to warm up
