"""Opens NumPy files of images, [N, H, W, C] or [N, C, H, W]."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqvae_fast.errors import UserError, check_input
from vqvae_fast.training.data.crops import ImageData, crop_of, split_data
from vqvae_fast.training.npz import UNREADABLE, read_headers

_CHANNELS = (1, 3)


def open_array(path: Path, *, crop: int | None, held_out: float) -> ImageData:
    """Training data of a .npy or .npz file; a .npy stays on disk and is read as needed."""
    images = as_images(_load(path), str(path))
    count, height, width, channels = images.shape
    side = crop_of(crop, height, width)
    return split_data(
        images,
        [(height, width)] * count,
        crop=side,
        held_out=held_out,
        channels=channels,
        noun="images",
    )


def as_images(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Check that ``array`` holds images, uint8 or float in [0, 1]; return it as [N, H, W, C]."""
    shape = list(array.shape)
    if array.ndim != 4 or 0 in shape or not {shape[1], shape[3]} & set(_CHANNELS):
        raise UserError(
            f"{name} must be [N, H, W, C] or [N, C, H, W] with 1 or 3 channels, got {shape}"
        )
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise UserError(f"{name} must be uint8 or float, got {array.dtype}")
    if array.dtype != np.uint8:
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):  # a NaN compares false
            raise UserError(
                f"{name} holds floats from {low:g} to {high:g}; scale the images to [0, 1]"
            )
    return array if shape[3] in _CHANNELS else array.transpose(0, 2, 3, 1)


def _load(path: Path) -> NDArray[Any]:
    check_input(path, "data")
    try:
        if path.suffix.lower() == ".npy":
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            return array
        shapes = {name: header.shape for name, header in read_headers(path).items()}
        names = [name for name, shape in shapes.items() if len(shape) == 4]
        if len(names) == 1:
            with np.load(path, allow_pickle=False) as archive:
                chosen: NDArray[Any] = archive[names[0]]
                return chosen
    except UNREADABLE as error:
        # NumPy takes an unknown file for a pickle, and its message advises to run the code in it.
        objects = any(word in str(error).lower() for word in ("pickle", "object"))
        why = "it is not one, or holds Python objects" if objects else error
        raise UserError(f"{path} cannot be read as a NumPy file: {why}") from error
    listing = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) or "none"
    raise UserError(
        f"{path} must hold one array [N, H, W, C] or [N, C, H, W], its arrays are: {listing}"
    )
