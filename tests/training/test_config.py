import dataclasses
import json
from pathlib import Path

import pytest

from vqvae_fast.training import TrainConfig, UserError, train


def test_config_survives_json(tiny):
    assert TrainConfig.from_dict(json.loads(json.dumps(tiny.to_dict()))) == tiny


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"lr": -1.0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be a finite number, got nan"),
        ({"held_out": 1.0}, "held_out must lie between 0 and 1"),
        ({"quantizer": "magic"}, "ema or gradient, got magic"),
        ({"dtype": "int8"}, "float32 or bf16"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**63}, "seed must be at least 0 and below 2"),
        ({"steps": "2"}, "steps must be an integer, got '2'"),
        ({"batch_size": 2.5}, "batch_size must be an integer, got 2.5"),
        ({"dim": True}, "dim must be an integer, got True"),
        ({"seed": None}, "seed must be an integer, got None"),
        ({"lr": "fast"}, "lr must be a number, got 'fast'"),
        ({"lr": 10**400}, "lr must be a finite number, got 1000"),
        ({"codebook_size": 10**20}, "codebook_size must be below 2"),
        ({"out": Path("run")}, "out must be a string or None, got PosixPath"),
        ({"crop": "32"}, "crop must be an integer or None, got '32'"),
        ({"photographs": "coffee"}, "photographs must be a tuple of names, got 'coffee'"),
        ({"data": 3}, "data must be a string, got 3"),
        ({"beta": -1.0}, "beta must not be below 0"),
    ],
)
def test_impossible_settings_are_refused(tiny, change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(tiny, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "abacus"}, "device must be auto, cpu"),
        ({"device": "cuda:99"}, "cuda:99 is not available"),
        ({"crop": 10}, "crop must be a multiple of 4"),
        ({"crop": 17}, "at least 17 pixels"),
        ({"h_dim": 7}, "h_dim must be even"),
    ],
)
def test_settings_that_do_not_fit_leave_no_run_folder(tiny, change, message):
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(tiny, **change))
    assert not Path(tiny.out).exists()
