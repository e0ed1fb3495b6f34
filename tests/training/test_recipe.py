"""What is chosen for large codebooks: the quantizer's settings, and how the learning rate falls."""

import dataclasses

import pytest
import torch

from vqvae_fast.training import open_data, resume, train
from vqvae_fast.training.building import learning_rate
from vqvae_fast.training.loop import Trainer

# 4 crops of 16 x 16 pixels are 64 vectors a step.
LARGE = 65


@pytest.fixture
def large(tiny):
    return dataclasses.replace(tiny, codebook_size=LARGE)


def test_the_learning_rate_of_small_codebooks_is_constant(tiny):
    data = open_data(tiny.data)
    for config in (
        dataclasses.replace(tiny, codebook_size=LARGE - 1),
        dataclasses.replace(tiny, codebook_size=LARGE, quantizer="gradient"),
    ):
        assert {learning_rate(config, data, step) for step in range(12)} == {tiny.lr}


def test_the_learning_rate_of_large_codebooks_falls(large):
    data = open_data(large.data)
    rates = [learning_rate(large, data, step) / large.lr for step in range(12)]
    assert rates[:7] == [1.0] * 7
    assert rates[7:] == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    once = dataclasses.replace(large, steps=1)
    assert learning_rate(once, data, 0) == large.lr


def test_settings_of_a_large_quantizer(large):
    data = open_data(large.data)
    quantizer = Trainer(dataclasses.replace(large, codebook_size=640), data, 1.0).model
    ema = quantizer.vector_quantization.ema
    assert ema.decay == pytest.approx(0.99)
    assert quantizer.vector_quantization.dead_code_threshold == pytest.approx(0.025)
    rare = Trainer(dataclasses.replace(large, codebook_size=6400), data, 1.0).model
    assert rare.vector_quantization.ema.decay == pytest.approx(1 - 0.01 / 3)


def test_length_of_a_code(tiny, large):
    for config, dim in ((tiny, 64), (large, 16)):
        data = open_data(config.data)
        free = dataclasses.replace(config, dim=None)
        assert Trainer(free, data, 1.0).model.vector_quantization.e_dim == dim
        assert Trainer(config, data, 1.0).model.vector_quantization.e_dim == 4


def test_large_codebooks_quantize_directions(tiny, large):
    data = open_data(large.data)
    for config, on_a_sphere in (
        (tiny, False),
        (large, True),
        (dataclasses.replace(large, quantizer="gradient"), False),
        (dataclasses.replace(large, dim=1), False),
    ):
        assert Trainer(config, data, 1.0).model.config["l2_norm"] == on_a_sphere


def test_a_run_cools_down(large, no_pictures):
    result = train(large)
    state = torch.load(result.run / "checkpoint.pt", weights_only=True)
    (group,) = state["optimizer"]["param_groups"]
    assert group["lr"] == pytest.approx(large.lr / 6)


def test_a_run_stopped_while_it_collects_samples_goes_on(large, tmp_path):
    """64 vectors a step: k-means begins behind the fifth."""
    data = open_data(large.data)

    def advanced(steps):
        torch.manual_seed(0)
        trainer = Trainer(large, data, data.variance())
        for _ in range(steps):
            trainer.advance()
        return trainer

    whole = advanced(12).model.state_dict()
    stopped = advanced(2)
    assert len(stopped.model.vector_quantization.kmeans.samples) == 128
    torch.save(stopped.state(), tmp_path / "state.pt")
    resumed = advanced(0)
    resumed.load(torch.load(tmp_path / "state.pt", weights_only=False), tmp_path)
    for _ in range(10):
        resumed.advance()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, whole[name]), name


def test_a_run_made_longer_gets_the_rates_of_the_longer(large, no_pictures):
    run = train(dataclasses.replace(large, steps=6)).run
    resume(run, steps=20)
    data = open_data(large.data)
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    (group,) = state["optimizer"]["param_groups"]
    longer = dataclasses.replace(large, steps=20)
    assert group["lr"] == learning_rate(longer, data, 19)
