"""Any torch Dataset as training data."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from vqvae_fast.errors import UserError
from vqvae_fast.training.data.arrays import as_images
from vqvae_fast.training.data.crops import (
    ImageData,
    Regions,
    crop_of,
    split_data,
    whole_boxes,
)
from vqvae_fast.training.pixel_scale import Image


class DatasetImages:
    """A map-style Dataset as arrays [H, W, C].

    Its items are images, or tuples that begin with one: a tensor or array [C, H, W] or [H, W, C],
    uint8 or float in [0, 1], or a Pillow image. All have one size.
    """

    def __init__(self, dataset: "Dataset[Any]") -> None:
        """Raise UserError if items cannot be drawn at random."""
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise UserError(
                "a Dataset needs __len__ and __getitem__ (an IterableDataset has neither), "
                f"got {type(dataset).__name__}"
            )
        self._dataset = dataset
        self._length = len(dataset)
        if self._length < 1:
            raise UserError("the Dataset is empty")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Image:
        item = self._dataset[index]
        if isinstance(item, tuple | list):
            item = item[0]
        if isinstance(item, Mapping):
            keys = ", ".join(map(repr, item)) or "none"
            raise UserError(
                f"item {index} of the Dataset must be an image or a tuple that begins with one, "
                f"got a {type(item).__name__} with the keys {keys}"
            )
        pixels = item.detach().cpu().numpy() if isinstance(item, torch.Tensor) else np.asarray(item)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        # as_images checks batches: one image is a batch of one.
        image: Image = as_images(pixels[None], f"item {index} of the Dataset")[0]
        return image


def from_dataset(
    dataset: "Dataset[Any]",
    validation: "Dataset[Any] | None" = None,
    *,
    crop: int | None = None,
    held_out: float = 0.2,
) -> ImageData:
    """Training data of a Dataset whose images share one size.

    Args:
        dataset: map-style; see :class:`DatasetImages` for its items.
        validation: the held-out images; None holds a share of ``dataset`` out.
        crop: side of the crops; None is 32, or the whole of smaller images.
        held_out: share of ``dataset`` to hold out when there is no ``validation``.
    """
    images = DatasetImages(dataset)
    height, width, channels = images[0].shape
    side = crop_of(crop, height, width)
    count = len(images)
    if validation is None:
        sizes = [(height, width)] * count
        return split_data(
            images, sizes, crop=side, held_out=held_out, channels=channels, noun="images"
        )
    others = DatasetImages(validation)
    return ImageData(
        Regions(images, whole_boxes(count, height, width)),
        Regions(others, whole_boxes(len(others), *others[0].shape[:2])),
        channels=channels,
        crop=side,
        description=f"{count} images to train on, {len(others)} held out",
    )
