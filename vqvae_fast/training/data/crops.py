"""Draws random crops of images of any size, and sets regions aside that are never trained on.

An image is an array [H, W, C], uint8 or float in [0, 1]. Boxes [R, 5] hold one region a row:
image, top, left, height, width, in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae_fast.errors import UserError
from vqvae_fast.training.pixel_scale import Image, to_model_scale

Boxes = NDArray[np.int64]


class Images(Protocol):
    """A number of images: a list of arrays, one array [N, H, W, C], files, a Dataset."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


# The held-out crops are drawn once with this seed, not with the run's: runs of different seeds
# are then measured on the same crops.
_HELD_OUT_SEED = 0
_VARIANCE_REGIONS = 2048


@dataclass(frozen=True)
class Regions:
    """Parts of images, and random crops of them; every region has the same weight."""

    images: Images
    boxes: Boxes

    def __len__(self) -> int:
        return len(self.boxes)

    def read(self, region: int) -> Image:
        """The pixels of one region, [height, width, C]."""
        image, top, left, height, width = self.boxes[region]
        part: Image = self.images[int(image)][top : top + height, left : left + width]
        if part.shape[:2] != (height, width):
            raise UserError(
                f"image {image} must hold a region of {height}x{width} pixels at ({top}, {left}), "
                f"got {part.shape[0]}x{part.shape[1]}; images of a Dataset must share one size"
            )
        return part

    def crops(
        self,
        rng: np.random.Generator,
        count: int,
        side: int,
        channels: int,
        part: slice = slice(None),
    ) -> Tensor:
        """Random crops, each flipped left to right half of the time; of them those in ``part``.

        Returns:
            [count, C, side, side] float32 in [-1, 1].
        """
        drawn = len(range(count)[part])
        # All memory is taken first, so that a size beyond it fails at once and not after minutes.
        try:
            crops = np.empty((drawn, channels, side, side), dtype=np.float32)
        except ValueError as error:  # more bytes than can be addressed
            raise MemoryError from error
        chosen = rng.integers(len(self.boxes), size=count)[part]
        draws = rng.random((count, 3))[part]
        for place, region, (down, across, flip) in zip(crops, chosen.tolist(), draws, strict=True):
            pixels = self.read(region)
            if pixels.shape[2] != channels:
                raise UserError(
                    f"all images must have {channels} channels, got one with {pixels.shape[2]}"
                )
            top = int(down * (pixels.shape[0] - side + 1))
            left = int(across * (pixels.shape[1] - side + 1))
            crop = pixels[top : top + side, left : left + side]
            place[:] = to_model_scale(crop[:, ::-1] if flip < 0.5 else crop).transpose(2, 0, 1)
        return torch.from_numpy(crops)


@dataclass(frozen=True)
class ImageData:
    """Training regions, held-out regions, and their description.

    Attributes:
        channels: 1 or 3.
        crop: side of the crops in pixels.
        description: one sentence for the terminal.
    """

    train: Regions
    held_out: Regions
    channels: int
    crop: int
    description: str

    def batch(self, seed: int, step: int, size: int, part: slice = slice(None)) -> Tensor:
        """The training batch of a step: [size, C, crop, crop] float32 in [-1, 1].

        It depends on (seed, step) alone: a resumed run draws what the whole run would have drawn,
        with no sampler state to save. Each of several processes reads its ``part`` only.
        """
        rng = np.random.default_rng([seed, step])
        return self.train.crops(rng, size, self.crop, self.channels, part)

    def validation(self, count: int) -> Tensor:
        """The fixed held-out crops: [count, C, crop, crop] float32 in [-1, 1]."""
        return self.held_out.crops(
            np.random.default_rng(_HELD_OUT_SEED), count, self.crop, self.channels
        )

    def variance(self) -> float:
        """Variance of the training pixels on the model's scale, all channels together.

        Exact for up to 2048 regions; of more, 2048 evenly spaced ones are read.
        """
        total = squares = 0.0
        count = 0
        regions = np.linspace(0, len(self.train) - 1, min(len(self.train), _VARIANCE_REGIONS))
        for region in np.unique(regions.astype(int)):
            pixels = to_model_scale(self.train.read(int(region))).astype(np.float64)
            total += float(pixels.sum())
            squares += float(np.square(pixels).sum())
            count += pixels.size
        variance = squares / count - (total / count) ** 2
        if variance < 1e-10:
            raise UserError("the training images are all of one colour: there is nothing to learn")
        return variance

    def preview(self, count: int, multiple: int, largest: int = 128) -> list[Tensor]:
        """Held-out squares to look at, one a region: [C, side, side] in [-1, 1], one size.

        The model takes images of any size, so they are as large as the regions allow; the side
        is a multiple of ``multiple``, as the crop must be.
        """
        regions = np.unique(np.linspace(0, len(self.held_out) - 1, count).astype(int))
        side = min(int(self.held_out.boxes[regions, 3:].min()), largest)
        side = side // multiple * multiple
        tiles = []
        for region in regions:
            pixels = self.held_out.read(int(region))
            top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
            tile = to_model_scale(pixels[top : top + side, left : left + side])
            tiles.append(torch.from_numpy(tile.transpose(2, 0, 1).copy()))
        return tiles


def split_regions(
    sizes: Sequence[tuple[int, int]], crop: int, held_out: float
) -> tuple[Boxes, Boxes]:
    """Divide images into training and held-out regions that share no pixel.

    Where both parts are at least a crop wide, the right share of an image is held out. Of the
    images that are too narrow for that, whole ones are held out, evenly spaced.

    Args:
        sizes: (height, width) of every image, each at least a crop.
        crop: side of the crops in pixels.
        held_out: share in (0, 1).

    Returns:
        Boxes of the training and of the held-out regions.
    """
    train, kept, narrow = [], [], []
    for image, (height, width) in enumerate(sizes):
        cut = width - round(width * held_out)
        if min(cut, width - cut) >= crop:
            train.append((image, 0, 0, height, cut))
            kept.append((image, 0, cut, height, width - cut))
        else:
            narrow.append(image)
    for order, image in enumerate(narrow):
        # The count of held-out images rises by one whenever order * held_out passes an integer.
        chosen = int((order + 1) * held_out) > int(order * held_out)
        (kept if chosen else train).append((image, 0, 0, *sizes[image]))
    return _boxes(train), _boxes(kept)


def split_data(
    images: Images,
    sizes: Sequence[tuple[int, int]],
    *,
    crop: int,
    held_out: float,
    channels: int,
    noun: str,
) -> ImageData:
    """ImageData of images of which a share is held out."""
    train, kept = split_regions(sizes, crop, held_out)
    if not len(train) or not len(kept):
        raise UserError(
            f"{len(sizes)} {noun} cannot be divided into training and held-out parts with crops "
            f"of {crop} pixels and a held-out share of {held_out:g}; give more or larger images"
        )
    inside = (kept[:, 2] > 0).all()
    what = f"the right {held_out:.0%} of each" if inside else f"{held_out:.0%} of them"
    description = f"{len(sizes)} {noun}, crops of {crop}x{crop}; {what} held out"
    return ImageData(Regions(images, train), Regions(images, kept), channels, crop, description)


def whole_boxes(count: int, height: int, width: int) -> Boxes:
    """One region for each of ``count`` images of one size."""
    boxes = np.zeros((count, 5), dtype=np.int64)
    boxes[:, 0] = np.arange(count)
    boxes[:, 3:] = height, width
    return boxes


def crop_of(crop: int | None, height: int, width: int) -> int:
    """The crop for images of one size: as asked, or 32, or the whole of a smaller image."""
    smaller = min(height, width)
    if crop is None:
        crop = min(32, smaller // 4 * 4)
    if crop < 4 or crop > smaller:
        raise UserError(
            f"images must be at least {max(crop, 4)} pixels wide and high for the crops, "
            f"got {width}x{height}"
        )
    return crop


def _boxes(rows: list[tuple[int, int, int, int, int]]) -> Boxes:
    return np.array(rows, dtype=np.int64).reshape(-1, 5)
