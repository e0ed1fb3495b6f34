import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqvae_fast.training import TrainConfig, pictures, train

MakeImage = Callable[..., Path]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def make_image(tmp_path: Path, rng: np.random.Generator) -> MakeImage:
    def make(name: str, width: int = 80, height: int = 40, mode: str = "RGB") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
        pixels = rng.integers(256, size=(height, width, *channels), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return make


def tiny_config(folder: Path, rng: np.random.Generator) -> TrainConfig:
    """A model and data small enough to train within a second; both lie in ``folder``."""
    images = rng.integers(256, size=(20, 16, 16, 3), dtype=np.uint8)
    np.save(folder / "tiny.npy", images)
    return TrainConfig(
        data=str(folder / "tiny.npy"),
        codebook_size=16,
        dim=4,
        h_dim=8,
        res_h_dim=4,
        batch_size=4,
        steps=12,
        lr=1e-3,
        device="cpu",
        log_every=3,
        eval_every=4,
        eval_crops=8,
        checkpoint_every=5,
        out=str(folder / "run"),
    )


@pytest.fixture
def tiny(tmp_path: Path, rng: np.random.Generator) -> TrainConfig:
    return tiny_config(tmp_path, rng)


def leave_out_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("save_reconstructions", "save_curves", "save_usage"):
        monkeypatch.setattr(pictures, name, lambda *arguments: None)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_pictures(monkeypatch)


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(tmp_path_factory.mktemp("trained"), np.random.default_rng(7))
    with pytest.MonkeyPatch.context() as monkeypatch:
        leave_out_pictures(monkeypatch)
        return train(dataclasses.replace(config, steps=3)).run


@pytest.fixture
def run(_trained: Path, tmp_path: Path) -> Path:
    """A run of three steps, of which each test has a copy of its own."""
    return shutil.copytree(_trained, tmp_path / "run")
