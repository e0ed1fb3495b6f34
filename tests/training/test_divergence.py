"""Training that diverges stops, says at which step, and leaves a checkpoint from before."""

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vqvae_fast.training import UserError, load_model, train
from vqvae_fast.training.checkpoint import load_checkpoint
from vqvae_fast.training.data import open_data
from vqvae_fast.training.loop import Trainer, save
from vqvae_fast.training.optimizer import is_finite, moments_are_finite
from vqvae_fast.training.run import resume
from vqvae_fast.training.runfolder import read_metrics

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.parametrize("quantizer", ["ema", "gradient"])
@pytest.mark.parametrize("lr", [1e18, 1e30, 3e37])
@pytest.mark.parametrize("steps", [1, 40])
def test_the_checkpoint_is_from_before(tiny, quantizer, lr, steps):
    # Checkpoints are due between two rows of metrics, and behind each step.
    config = dataclasses.replace(
        tiny, steps=steps, lr=lr, quantizer=quantizer, checkpoint_every=1, log_every=7
    )
    with pytest.raises(UserError, match=r"training diverged: at step \d+ .*smaller lr"):
        train(config)
    run = Path(config.out)
    assert is_finite(load_model(run))
    assert load_checkpoint(run)["step"] == 0  # the first step explodes the weights
    assert all(math.isfinite(value) for row in read_metrics(run) for value in row.values())


def trainer_of(tiny, **changes):
    data = open_data(tiny.data)
    torch.manual_seed(0)
    return Trainer(dataclasses.replace(tiny, **changes), data, data.variance())


@pytest.mark.parametrize(
    "value", [math.nan, *(pytest.param(v, marks=pytest.mark.slow) for v in (math.inf, -math.inf))]
)
@pytest.mark.parametrize("what", ["weight", "code", "loss"])
def test_the_step_that_diverged_is_named(tiny, tmp_path, monkeypatch, value, what):
    trainer = trainer_of(tiny, log_every=10, eval_every=10)
    compute = trainer._forward

    def break_at_third_step(x):
        result = compute(x)
        if trainer.step != 2:
            return result
        if what == "weight":
            next(trainer.model.parameters()).data[0] = value
        elif what == "code":
            trainer.model.vector_quantization.codebook.data[0] = value
        return result._replace(loss=result.loss + value) if what == "loss" else result

    trainer._forward = break_at_third_step
    save(tmp_path, trainer)
    for _ in range(5):
        assert trainer.advance() is None
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(UserError, match="diverged: at step 3 the loss or a weight became NaN"):
        save(tmp_path, trainer)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    for _ in range(4):
        assert trainer.advance() is None
    with pytest.raises(UserError, match="diverged: at step 3 "):
        trainer.advance()


def test_averages_that_have_overflowed_stop_the_run(tiny, tmp_path):
    """Adam divides by them: the weights stay finite and never move again."""
    trainer = trainer_of(tiny)
    trainer.advance()
    assert moments_are_finite(trainer.optimizer)
    parameter = trainer.optimizer.param_groups[0]["params"][0]
    trainer.optimizer.state[parameter]["max_exp_avg_sq"][0] = math.inf
    with pytest.raises(UserError, match="diverged: at step 1 Adam's averages"):
        save(tmp_path, trainer)


def test_a_resumed_window_knows_its_finite_steps(tiny):
    run = train(dataclasses.replace(tiny, steps=2, log_every=10, eval_every=10)).run
    assert resume(run, steps=5).step == 5


def test_large_weights_are_finite(tiny):
    trainer = trainer_of(tiny)
    parameter = next(trainer.model.parameters())
    with torch.no_grad():
        parameter.fill_(3e38)  # the sum of their squares is not
        assert is_finite(trainer.model)
        parameter[0] = math.nan
        assert not is_finite(trainer.model)


@pytest.mark.slow
def test_of_several_processes_all_stop(tiny, tmp_path):
    options = f"--codebook-size 16 --dim 4 --batch-size 4 --lr 1e30 --device cpu --data {tiny.data}"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "vqvae_fast.cli", "train", *options.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode != 0
    assert "training diverged: at step 2 " in done.stderr
    assert "gloo" not in done.stderr.lower()  # no process waited for one that had gone
    assert load_checkpoint(tmp_path / "runs" / "tiny-ema-1")["step"] == 0
