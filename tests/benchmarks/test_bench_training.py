"""The training benchmark: a smoke run of all recipes, measuring, resuming."""

import json
import math

import pytest
import torch

from benchmarks import training
from vqvae_fast.bench.data import from_run

OPTIONS = ["--steps", "2", "--seeds", "0", "--crops", "8"]


@pytest.mark.slow
def test_smoke_run_of_all_recipes(tmp_path, capsys, monkeypatch):
    out = tmp_path / "training.json"
    training.main([*OPTIONS, "--only", "ema", "--json", str(out), "--keep", str(tmp_path)])
    assert set(json.loads(out.read_text())["runs"]) == {"ema-0"}

    z, codebook, source = from_run(tmp_path / "ema-0", rows=100)
    assert (z.shape, codebook.shape, source) == ((100, 64), (512, 64), "trained")

    training.main([*OPTIONS, "--json", str(out)])
    text = capsys.readouterr().out
    assert "ema-0: there already" in text
    runs = json.loads(out.read_text())["runs"]
    assert set(runs) == {"ema-0", "gradient-0", "reference-0"}
    for run in runs.values():
        assert run["steps"] == 2
        assert run["seconds"] > 0
        for place in ("held_out", "training"):
            assert 0 < run[place]["psnr"] < 30
            assert 1 <= run[place]["perplexity"] <= run[place]["codes_used"] + 1e-9
    table = out.with_suffix(".md").read_text()
    assert all(f"\n| {recipe} " in table for recipe in training.RECIPES)

    # A run of another length is another run.
    assert training.load(out, 3, 8) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ema-0",
        "training.json",
        "training.md",
    ]

    # With everything there, nothing is trained again.
    monkeypatch.setattr(training, "run_one", None)
    assert training.main([*OPTIONS, "--json", str(out)])["runs"] == runs


@pytest.mark.slow
def test_curves_of_all_recipes_are_on_one_scale(tmp_path):
    options = ["--steps", "10", "--seeds", "0", "--crops", "64", "--json", str(tmp_path / "t.json")]
    for run in training.main(options)["runs"].values():
        ((step, error),) = run["curve"]
        assert step == 10
        measured = 10 ** (-run["training"]["psnr"] / 10)  # of the same crops, at the end
        assert 0.5 < error / measured < 2


def test_measure_counts_over_all_crops():
    crops = torch.zeros(40, 3, 4, 4)

    def forward(x):
        # Off by 0.2 on [-1, 1]: an error of 0.1 on [0, 1] is 20 dB.
        return x + 0.2, torch.arange(len(x)) % 2 * 5

    measured = training.measure(forward, crops)
    assert measured.psnr == pytest.approx(20.0, abs=1e-4)
    assert measured.codes_used == 2
    assert measured.perplexity == pytest.approx(2.0)


def test_range_over_the_seeds():
    runs = {
        f"ema-{seed}": {
            "recipe": "ema",
            "seed": seed,
            "steps": 5,
            "seconds": 60.0,
            "held_out": {"psnr": psnr, "codes_used": 500, "perplexity": 400.0},
            "training": {"psnr": psnr, "codes_used": 510, "perplexity": 400.0},
        }
        for seed, psnr in enumerate((26.0, 27.0, math.pi * 9))
    }
    record = training.environment.describe("benchmarks.training", 2)
    text = training.markdown(record | {"runs": runs, "data": "photographs", "crops": 8})
    assert "27.09 (26.00 to 28.27)" in text
    assert "| 0, 1, 2 |" in text
    assert "5 steps of 32 crops" in text
