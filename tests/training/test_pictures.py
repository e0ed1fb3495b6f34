import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae_fast.models import VQVAE
from vqvae_fast.training import UserError, pictures, train
from vqvae_fast.training.evaluation import psnr
from vqvae_fast.training.files import check_format, read_image, write_image
from vqvae_fast.training.reconstruct import reconstruct_image


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = VQVAE(8, 4, 2, 16, 4).eval()
    # codes as far apart as the latents, so that many of them are in use
    model.vector_quantization.embedding.weight.data.normal_(0, 0.3)
    return model


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(256, size=shape, dtype=np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4), (33, 18), (61, 130)])
def test_tiles_give_the_same_as_the_whole_image(model, size):
    pixels = noise(*size, 3)
    tiled = reconstruct_image(model, pixels, tile=3)
    whole = reconstruct_image(model, pixels, tile=1000)
    assert tiled.pixels.shape == pixels.shape
    # the convolutions may round differently on another size, by one grey level at most
    assert np.abs(tiled.pixels.astype(int) - whole.pixels).max() <= 1
    assert len(np.unique(whole.pixels)) > 1


def test_whole_image_is_what_the_model_makes_of_it(model):
    pixels = noise(16, 24, 3)
    result = reconstruct_image(model, pixels)
    x = torch.from_numpy(pixels / 127.5 - 1).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        x_hat = model(x)[1][0]
    expected = ((x_hat + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).numpy()
    assert np.abs(result.pixels - expected).max() <= 1
    assert result.mse == pytest.approx(np.mean((result.pixels / 255 - pixels / 255) ** 2))


def test_rate_counts_the_codes_of_the_padded_image(model):
    result = reconstruct_image(model, noise(5, 9, 3))
    assert result.latents == 2 * 3
    assert result.bits_per_pixel == pytest.approx(6 * 4 / 45)


def test_psnr():
    assert psnr(0.01) == pytest.approx(20)
    assert psnr(0) == math.inf


def test_sixteen_bit_and_palette_images_are_read(tmp_path):
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png", 1)[..., 0], ramp >> 8)
    clear = Image.new("P", (4, 4), 0)
    clear.save(tmp_path / "clear.gif", transparency=0)
    assert (read_image(tmp_path / "clear.gif") == 255).all()


def test_output_that_cannot_be_is_told_first(tmp_path):
    with pytest.raises(UserError, match="must end like an image"):
        check_format(tmp_path / "x.mp3")
    with pytest.raises(UserError, match="cannot be written"):
        write_image(tmp_path / "wide.jpg", np.zeros((1, 70000, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def panel(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_reconstructions_show_originals_above_what_the_model_makes(model, tmp_path):
    red = torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, 16, 16)
    pictures.save_reconstructions(tmp_path / "r.png", model, [red] * 3, 20.0)
    image = panel(tmp_path / "r.png")
    is_red = (image == [255, 0, 0]).all(axis=2)
    rows = np.flatnonzero(is_red.any(axis=1))
    assert is_red.sum() > 30000
    assert rows.max() < image.shape[0] * 0.6


@pytest.mark.parametrize(
    "rows", [[], [{"step": 1, "loss": 1.0, "mse": 0.1, "perplexity": 3.0, "codes_used": 4}]]
)
def test_curves_of_short_runs_are_drawn(tmp_path, rows):
    pictures.save_curves(tmp_path / "c.png", rows, 16)
    assert (panel(tmp_path / "c.png") == [0, 0x72, 0xB2]).all(axis=2).any() == bool(rows)


def test_pictures_of_a_run_have_size_and_content(tiny):
    run = train(dataclasses.replace(tiny, steps=6)).run
    assert len(list(run.glob("*.png"))) == 3
    for name, width in (("reconstructions", 600), ("curves", 1300), ("usage", 1100)):
        image = panel(run / f"{name}.png")
        assert image.shape[1] > width
        assert image.std() > 10
    curves = panel(run / "curves.png")
    for colour in ([0x00, 0x72, 0xB2], [0xD5, 0x5E, 0x00]):  # training and held out
        assert (curves == colour).all(axis=2).sum() > 100
