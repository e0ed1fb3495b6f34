"""Where training images come from: photographs, folders, CIFAR-10, arrays, torch Datasets."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from vqvae_fast.errors import UserError, user_path
from vqvae_fast.training.data.arrays import open_array
from vqvae_fast.training.data.cifar10 import open_cifar10
from vqvae_fast.training.data.crops import ImageData
from vqvae_fast.training.data.dataset import from_dataset
from vqvae_fast.training.data.folder import open_folder
from vqvae_fast.training.data.photos import DEFAULT_PHOTOGRAPHS, PHOTOGRAPHS, open_photos

# Crops of images that differ in size.
_CROP = 32
_PHOTOS, _CIFAR10 = "photos", "cifar10:"
# File names end at 255 bytes and a character has at most four: what a run adds to it has room.
_LONGEST_LABEL = 50

__all__ = [
    "DEFAULT_PHOTOGRAPHS",
    "PHOTOGRAPHS",
    "ImageData",
    "absolute_source",
    "from_dataset",
    "open_data",
    "source_label",
]


def open_data(
    data: "str | Dataset[Any]",
    *,
    photographs: Sequence[str] = DEFAULT_PHOTOGRAPHS,
    crop: int | None = None,
    held_out: float = 0.2,
    validation: "Dataset[Any] | None" = None,
) -> ImageData:
    """Open training data and set its held-out part aside.

    Args:
        data: "photos", a folder, "cifar10:FOLDER", a .npy or .npz file, or a torch Dataset.
        photographs: names out of ``PHOTOGRAPHS``; read by "photos" alone.
        crop: side of the square crops in pixels. None is 32, or the smaller side of images that
            come in one size below that.
        held_out: share of the data, in (0, 1), that is never trained on.
        validation: a Dataset to hold out instead of a share of ``data``, if that is a Dataset.

    Raises:
        UserError: the data is missing, unreadable, too small, or not of an expected form.
    """
    if not 0 < held_out < 1:
        raise UserError(f"held_out must lie between 0 and 1, got {held_out:g}")
    if crop is not None and crop < 4:
        raise UserError(f"crop must be at least 4 pixels, got {crop}")
    if not isinstance(data, str):
        return from_dataset(data, validation, crop=crop, held_out=held_out)
    if data == _PHOTOS:
        return open_photos(photographs, crop=crop or _CROP, held_out=held_out)
    if data.startswith(_CIFAR10):
        return open_cifar10(user_path(data.removeprefix(_CIFAR10)), crop=crop)
    if not data:
        raise UserError("data must be named: photos, a folder, cifar10:FOLDER, a .npy or .npz file")
    path = user_path(data)
    if path.is_dir():
        return open_folder(path, crop=crop or _CROP, held_out=held_out)
    if not path.exists():
        raise UserError(f"data not found: {path}")
    if path.suffix.lower() not in (".npy", ".npz"):
        raise UserError(f"data must be a folder of images, a .npy or a .npz file, got {path}")
    return open_array(path, crop=crop, held_out=held_out)


def absolute_source(data: str) -> str:
    """The name of a source that :func:`open_data` understands in every working directory."""
    if data == _PHOTOS:
        return data
    kind = _CIFAR10 if data.startswith(_CIFAR10) else ""
    return kind + str(user_path(data.removeprefix(kind)).resolve())


def source_label(data: str) -> str:
    """A short name of a source, for the run folder."""
    if data == _PHOTOS or data.startswith(_CIFAR10):
        return data.split(":")[0]
    path = user_path(data).resolve()
    return (path.name if path.is_dir() else path.stem)[:_LONGEST_LABEL]
