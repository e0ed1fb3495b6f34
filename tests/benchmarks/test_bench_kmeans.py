"""The benchmark of k-means: a smoke run over all contenders, and what it refuses."""

import json

import pytest
import torch

from benchmarks import kmeans
from vqvae_fast.bench.data import Shape


def test_smoke_run_of_every_contender(tmp_path, capsys):
    out = tmp_path / "kmeans.json"
    kmeans.main(["--quick", "--json", str(out)])
    record, table = json.loads(out.read_text()), capsys.readouterr().out
    here = {name for name in kmeans.CONTENDERS if kmeans._skipped(name) is None}
    assert set(kmeans.CONTENDERS) == here | set(record["skipped"])
    for entry, shape in zip(record["results"], kmeans.QUICK, strict=True):
        assert entry["shape"] == shape._asdict()
        assert set(entry["contenders"]) == here
        inertias = [line["inertia"] for line in entry["contenders"].values()]
        assert max(inertias) == pytest.approx(min(inertias), rel=1e-6)
    assert set(record["starts"][0]["contenders"]) == here
    assert all(f"| {name} " in table for name in here)


def test_worse_codes_of_ours_are_never_reported(monkeypatch):
    def spoiled(x, start, iterations):
        fitted = kmeans._scikit_learn(x, start, iterations)
        return fitted._replace(codes=fitted.codes + 0.1)

    monkeypatch.setitem(kmeans.CONTENDERS, kmeans.OURS, spoiled)
    with pytest.raises(kmeans.WorseInertiaError, match="after 2 rounds at 300x8x5"):
        kmeans.compare(Shape(300, 8, 5), 1, 2)


def test_inertia_is_that_of_float64():
    x, codes = torch.randn(500, 3), torch.randn(7, 3)
    expected = torch.cdist(x.double(), codes.double()).square().amin(1).sum()
    assert kmeans.inertia_of(x, codes) == pytest.approx(float(expected), rel=1e-9)
