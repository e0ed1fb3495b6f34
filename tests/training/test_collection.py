"""While k-means collects its vectors there are no codes, and no figures of any."""

import dataclasses
import json
from pathlib import Path

import pytest

from vqvae_fast.training import TrainConfig, resume, train

CODEBOOK = ("perplexity", "codes_used")
HELD_OUT = ("held_out_mse", "held_out_psnr", "held_out_codes_used")


@pytest.fixture(autouse=True)
def _quick(no_pictures):
    """The pictures are tested in test_pictures.py."""


@pytest.fixture
def slow(tiny) -> TrainConfig:
    """A step has 64 vectors: the 256 of k-means are complete in the fourth."""
    return dataclasses.replace(tiny, codebook_size=64, eval_every=2)


def elsewhere(config: TrainConfig, name: str, **changes: object) -> TrainConfig:
    return dataclasses.replace(config, out=str(Path(config.out).with_name(name)), **changes)


def rows(run: Path) -> dict[int, dict[str, float | None]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row for row in map(json.loads, lines)}


def test_figures_of_the_codebook_are_null_until_it_has_codes(slow):
    found = rows(train(dataclasses.replace(slow, log_every=1, steps=6)).run)
    for step in (1, 2, 3):
        row = found[step]
        assert [row[name] for name in CODEBOOK] == [None, None]
        assert (row["kmeans_collected"], row["kmeans_samples"]) == (64 * step, 256)
        assert row["loss"] > 0
        assert row["mse"] > 0
    assert [found[2][name] for name in HELD_OUT] == [None, None, None]
    for step in (4, 5, 6):
        assert found[step]["codes_used"] > 1
        assert "kmeans_collected" not in found[step]
    assert found[4]["held_out_psnr"] > 0


def test_a_row_over_the_end_of_the_collection_counts_the_steps_with_codes(slow):
    each = rows(train(elsewhere(slow, "each", log_every=1, steps=6)).run)
    together = rows(train(elsewhere(slow, "together", log_every=6, eval_every=6, steps=6)).run)
    expected = sum(each[step]["perplexity"] for step in (4, 5, 6)) / 3
    assert together[6]["perplexity"] == pytest.approx(expected, rel=1e-12)
    loss = sum(each[step]["loss"] for step in range(1, 7)) / 6
    assert together[6]["loss"] == pytest.approx(loss, rel=1e-12)


@pytest.mark.quick(1)
@pytest.mark.parametrize("stop", [2, 4])
def test_a_resumed_run_writes_the_rows_of_the_whole_run(slow, stop):
    slow = dataclasses.replace(slow, log_every=6, eval_every=6)
    whole = train(slow)
    part = train(elsewhere(slow, "part", steps=stop))
    resume(part.run, steps=slow.steps)
    assert (whole.run / "metrics.jsonl").read_bytes() == (part.run / "metrics.jsonl").read_bytes()


def test_the_line_says_how_far_the_collection_is(slow, capsys):
    train(dataclasses.replace(slow, steps=4), progress=False)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("step 2/4: loss ")
    assert first.endswith(" dB, k-means has collected 128 of 256 vectors")
    assert "perplexity" in second
    assert "held-out" in second


def test_a_run_that_ends_before_the_collection_says_so_and_has_no_figures(slow):
    said: list[str] = []
    result = train(dataclasses.replace(slow, steps=2), say=said.append)
    (note,) = [line for line in said if "k-means" in line]
    assert "of the first 256 vectors, which takes 4 steps: after 2 the model has no codes" in note
    assert not result.interrupted
    assert result.held_out is None
    assert result.training is None
    recorded = json.loads((result.run / "result.json").read_text())
    assert (recorded["held_out"], recorded["training"]) == (None, None)

    said.clear()
    assert resume(result.run, steps=3, say=said.append).held_out is None
    assert any("which takes 4 steps: after 3" in line for line in said)
    said.clear()
    assert resume(result.run, steps=4, say=said.append).held_out.codes_used > 1
    assert not any("k-means" in line for line in said)
