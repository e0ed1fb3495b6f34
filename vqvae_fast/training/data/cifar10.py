"""Opens CIFAR-10 in its binary version (https://www.cs.toronto.edu/~kriz/cifar.html)."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqvae_fast.errors import UserError, check_input
from vqvae_fast.training.data.crops import ImageData, Regions, crop_of, whole_boxes

# A record is a label, then 1024 red, 1024 green and 1024 blue values of a 32x32 image.
_RECORD = 1 + 3 * 32 * 32
_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST = ("test_batch.bin",)


def open_cifar10(folder: Path, *, crop: int | None) -> ImageData:
    """Train on data_batch_1..5.bin, hold test_batch.bin out."""
    if not folder.is_dir():
        raise UserError(f"CIFAR-10 folder not found: {folder}")
    side = crop_of(crop, 32, 32)
    train, test = _read(folder, _TRAIN), _read(folder, _TEST)
    return ImageData(
        Regions(train, whole_boxes(len(train), 32, 32)),
        Regions(test, whole_boxes(len(test), 32, 32)),
        channels=3,
        crop=side,
        description=f"CIFAR-10: {len(train)} images to train on, {len(test)} test images held out",
    )


def _read(folder: Path, names: tuple[str, ...]) -> NDArray[np.uint8]:
    """Read the images of some batches, [N, 32, 32, 3]."""
    batches = []
    for name in names:
        path = folder / name
        if not path.exists():
            raise UserError(
                f"{path} is missing: cifar10:FOLDER wants the binary version "
                f"({_TRAIN[0]} to {_TRAIN[-1]}, {_TEST[0]})"
            )
        check_input(path, "images")
        values = np.fromfile(path, dtype=np.uint8)
        if values.size == 0 or values.size % _RECORD:
            raise UserError(
                f"{path} must hold records of {_RECORD} bytes, got {values.size} bytes; "
                "it is truncated or not CIFAR-10's binary version"
            )
        batches.append(values.reshape(-1, _RECORD)[:, 1:].reshape(-1, 3, 32, 32))
    return np.concatenate(batches).transpose(0, 2, 3, 1)
