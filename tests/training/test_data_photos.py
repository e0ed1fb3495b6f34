import socket

import numpy as np
import pytest
import torch

from vqvae_fast.training import UserError, open_data
from vqvae_fast.training.data import DEFAULT_PHOTOGRAPHS, PHOTOGRAPHS


@pytest.fixture
def _offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("reading photographs must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("_offline")
def test_every_photograph_lies_in_a_wheel_and_is_in_colour():
    data = open_data("photos", photographs=list(PHOTOGRAPHS))
    for region in range(len(PHOTOGRAPHS)):
        pixels = data.train.read(region)
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
        assert min(pixels.shape[:2]) >= 200
        assert (pixels[..., 0] != pixels[..., 2]).mean() > 0.1


def test_default_holds_the_right_fifth_of_eight_photographs_out():
    data = open_data("photos")
    assert len(DEFAULT_PHOTOGRAPHS) == len(data.train) == len(data.held_out) == 8
    widths = data.train.boxes[:, 4] + data.held_out.boxes[:, 4]
    np.testing.assert_allclose(data.held_out.boxes[:, 4] / widths, 0.2, atol=0.002)
    np.testing.assert_array_equal(data.held_out.boxes[:, 2], data.train.boxes[:, 4])
    batch = data.batch(0, 0, 4)
    assert batch.shape == (4, 3, 32, 32)
    assert batch.dtype == torch.float32
    assert -1 <= batch.min() < batch.max() <= 1


def test_unknown_photograph_is_named_together_with_the_known_ones():
    with pytest.raises(UserError, match=r"astronaut.*got nosuch"):
        open_data("photos", photographs=["nosuch"])


def test_held_out_share_narrower_than_a_crop_is_refused():
    with pytest.raises(UserError, match="cannot be divided"):
        open_data("photos", photographs=["chelsea"], held_out=0.01)


def test_missing_package_is_told_with_its_remedy(monkeypatch):
    monkeypatch.setattr("vqvae_fast.training.data.photos.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install vqvae_fast\[train\]"):
        open_data("photos")
