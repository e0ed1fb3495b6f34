"""When the quantizer sets in, and how the learning rate falls."""

import dataclasses
import json

import pytest
import torch

from vqvae_fast.training import open_data, train
from vqvae_fast.training.loop import Trainer
from vqvae_fast.training.recipe import Schedule, schedule

# 4 crops of 16 x 16 pixels are 64 vectors a step.
LARGE = 65


@pytest.fixture
def large(tiny):
    return dataclasses.replace(tiny, codebook_size=LARGE)


def test_small_codebooks_begin_at_once(tiny):
    data = open_data(tiny.data)
    for config in (
        dataclasses.replace(tiny, codebook_size=LARGE - 1),
        dataclasses.replace(tiny, codebook_size=LARGE, quantizer="gradient"),
    ):
        found = schedule(config, data)
        assert found == Schedule(0, 0, 12)
        assert {found.rate(step) for step in range(12)} == {1.0}


def test_large_codebooks_begin_late_and_end_at_rest(large):
    data = open_data(large.data)
    found = schedule(large, data)
    assert found == Schedule(4, 6, 12)
    rates = [found.rate(step) for step in range(12)]
    assert rates[:7] == [1.0] * 7
    assert rates[7:] == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    long = schedule(dataclasses.replace(large, steps=100_000), data)
    assert long == Schedule(1000, 50_000, 100_000)


def test_settings_of_a_large_quantizer(large):
    data = open_data(large.data)
    quantizer = Trainer(dataclasses.replace(large, codebook_size=640), data, 1.0).model
    ema = quantizer.vector_quantization.ema
    assert ema.decay == pytest.approx(0.99)
    assert quantizer.vector_quantization.dead_code_threshold == pytest.approx(0.025)
    rare = Trainer(dataclasses.replace(large, codebook_size=6400), data, 1.0).model
    assert rare.vector_quantization.ema.decay == pytest.approx(1 - 0.01 / 8)


def test_length_of_a_code(tiny, large):
    for config, dim in ((tiny, 64), (large, 16)):
        data = open_data(config.data)
        free = dataclasses.replace(config, dim=None)
        assert Trainer(free, data, 1.0).model.vector_quantization.e_dim == dim
        assert Trainer(config, data, 1.0).model.vector_quantization.e_dim == 4


def test_the_quantizer_learns_nothing_before_it_sets_in(large):
    data = open_data(large.data)
    torch.manual_seed(0)
    trainer = Trainer(dataclasses.replace(large, log_every=1, eval_every=1), data, data.variance())
    quantizer = trainer.model.vector_quantization
    start = {name: value.clone() for name, value in quantizer.state_dict().items()}
    decoder = [weight.clone() for weight in trainer.model.decoder.parameters()]
    for _ in range(4):
        row = trainer.advance()
        assert row["codes_used"] == row["perplexity"] == 0
        assert "held_out_mse" not in row
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, start[name]), name
    for weight, first in zip(trainer.model.decoder.parameters(), decoder, strict=True):
        assert not torch.equal(weight, first)
    row = trainer.advance()
    assert row["codes_used"] > 0
    assert "held_out_mse" in row
    assert len(quantizer.kmeans.samples) == 64


def test_a_run_cools_down(large, no_pictures):
    result = train(large)
    state = torch.load(result.run / "checkpoint.pt", weights_only=True)
    (group,) = state["optimizer"]["param_groups"]
    assert group["lr"] == pytest.approx(large.lr / 6)
    rows = [json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "held_out_mse" in row] == [8, 12]


def test_a_run_stopped_before_it_sets_in_goes_on(large, tmp_path):
    data = open_data(large.data)

    def begun():
        torch.manual_seed(0)
        return Trainer(large, data, data.variance())

    whole, first, second = begun(), begun(), begun()
    for trainer, steps in ((first, 2), (whole, 12)):
        for _ in range(steps):
            trainer.advance()
        if trainer is first:
            torch.save(first.state(), tmp_path / "state.pt")
    second.load(torch.load(tmp_path / "state.pt", weights_only=False), tmp_path)
    for _ in range(10):
        second.advance()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
