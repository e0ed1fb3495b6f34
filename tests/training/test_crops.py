import numpy as np
import pytest
import torch

from vqvae_fast.errors import UserError
from vqvae_fast.training.data.crops import ImageData, Regions, split_regions
from vqvae_fast.training.pixel_scale import to_model_scale


def numbered_pixels(sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    """Float images in which no two pixels of all images have the same value."""
    total = sum(h * w for h, w in sizes)
    images, start = [], 0
    for h, w in sizes:
        values = np.arange(start, start + h * w, dtype=np.float64) / total
        images.append(values.reshape(h, w, 1))
        start += h * w
    return images


def image_data(sizes: list[tuple[int, int]], crop: int, share: float) -> ImageData:
    images = numbered_pixels(sizes)
    train, held = split_regions(sizes, crop, share)
    return ImageData(Regions(images, train), Regions(images, held), 1, crop, "")


@pytest.mark.parametrize(
    ("sizes", "share"),
    [
        ([(40, 100), (33, 47)], 0.2),
        ([(10, 50)], 0.5),
        ([(9, 9)] * 12, 0.2),
        ([(8, 8), (30, 90), (8, 8), (12, 9), (8, 8), (8, 8)], 0.25),
    ],
)
def test_held_out_regions_share_no_pixel_with_training_and_lose_none(sizes, share):
    data = image_data(sizes, crop=8, share=share)
    train = np.concatenate([data.train.read(r).ravel() for r in range(len(data.train))])
    held = np.concatenate([data.held_out.read(r).ravel() for r in range(len(data.held_out))])
    assert not set(train) & set(held)
    assert len(train) + len(held) == sum(h * w for h, w in sizes)
    assert len(set(train)) + len(set(held)) == len(train) + len(held)


def test_crops_of_a_batch_and_of_validation_come_from_their_own_regions():
    data = image_data([(40, 100), (20, 60)], crop=8, share=0.2)
    train = {v for r in range(2) for v in to_model_scale(data.train.read(r)).ravel().tolist()}
    for step in range(20):
        assert set(data.batch(0, step, 16).ravel().tolist()) <= train
    assert not set(data.validation(200).ravel().tolist()) & train


def test_crops_reach_every_column_and_are_flipped_half_of_the_time():
    data = image_data([(8, 40)], crop=8, share=0.5)
    crops = data.train.crops(np.random.default_rng(0), 600, 8, 1)
    flipped = (crops[:, 0, 0, 0] > crops[:, 0, 0, 7]).float().mean()
    assert 0.4 < flipped < 0.6
    first = {round(v, 6) for v in crops[:, 0, 0, :].min(dim=1).values.tolist()}
    assert len(first) == 20 - 8 + 1


def test_crops_reach_every_row():
    data = image_data([(20, 16)], crop=8, share=0.5)  # both parts are as wide as a crop
    crops = data.train.crops(np.random.default_rng(0), 600, 8, 1)
    first = {round(v, 6) for v in crops[:, 0, 0, :].min(dim=1).values.tolist()}
    assert len(first) == 20 - 8 + 1


def test_batch_is_a_function_of_seed_and_step_alone():
    data = image_data([(40, 100)], crop=8, share=0.2)
    before = data.batch(3, 5, 4)
    data.batch(3, 6, 4)
    assert torch.equal(before, data.batch(3, 5, 4))
    assert not torch.equal(before, data.batch(3, 6, 4))
    assert not torch.equal(before, data.batch(4, 5, 4))
    assert torch.equal(data.validation(9), data.validation(9))


def test_pixels_map_to_minus_one_and_one():
    levels = to_model_scale(np.array([0, 255], dtype=np.uint8))
    assert levels.dtype == np.float32
    assert levels.tolist() == [-1.0, 1.0]
    assert to_model_scale(np.array([0.0, 0.5, 1.0])).tolist() == [-1.0, 0.0, 1.0]


def test_variance_is_that_of_the_training_pixels_on_the_models_scale():
    data = image_data([(40, 100), (33, 60)], crop=8, share=0.2)
    pixels = np.concatenate([data.train.read(r).ravel() for r in range(2)]) * 2 - 1
    assert data.variance() == pytest.approx(pixels.var(), rel=1e-6)


def test_images_of_one_colour_are_refused():
    images = [np.full((20, 60, 3), 9, dtype=np.uint8)]
    train, held = split_regions([(20, 60)], 8, 0.2)
    data = ImageData(Regions(images, train), Regions(images, held), 3, 8, "")
    with pytest.raises(UserError, match="one colour"):
        data.variance()


def test_preview_is_held_out_and_as_large_as_the_regions_allow():
    data = image_data([(40, 100), (30, 150)], crop=8, share=0.2)
    tiles = data.preview(8, multiple=4)
    assert [tuple(tile.shape) for tile in tiles] == [(1, 20, 20)] * 2
    train = {v for r in range(2) for v in to_model_scale(data.train.read(r)).ravel().tolist()}
    assert not {v for tile in tiles for v in tile.ravel().tolist()} & train
