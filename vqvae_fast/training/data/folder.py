"""Opens folders of image files."""

import os
from collections.abc import Sequence
from pathlib import Path

from vqvae_fast.errors import UserError
from vqvae_fast.training.data.crops import ImageData, split_data
from vqvae_fast.training.files import image_size, read_image
from vqvae_fast.training.pixel_scale import Image

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
# Memory for decoded pixels; images beyond it are decoded again whenever one is drawn.
_KEEP_BYTES = 1 << 30


class ImageFiles:
    """Image files as arrays; as many as memory allows are decoded once only."""

    def __init__(self, paths: Sequence[Path], sizes: Sequence[tuple[int, int]]) -> None:
        """Decode now what may be kept, so that a broken file fails before training begins."""
        self._paths = paths
        self._kept: dict[int, Image] = {}
        budget = _KEEP_BYTES
        for index, (height, width) in enumerate(sizes):
            budget -= height * width * 3
            if budget < 0:
                break
            self._kept[index] = read_image(paths[index])

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Image:
        kept = self._kept.get(index)
        return read_image(self._paths[index]) if kept is None else kept


def open_files(paths: Sequence[Path], *, crop: int, held_out: float, noun: str) -> ImageData:
    """Training data of image files, each at least ``crop`` pixels wide and high."""
    sizes = [image_size(path) for path in paths]
    for path, (height, width) in zip(paths, sizes, strict=True):
        if min(height, width) < crop:
            raise UserError(
                f"{path} is too small for crops of {crop} pixels: it is {width}x{height}"
            )
    images = ImageFiles(paths, sizes)
    return split_data(images, sizes, crop=crop, held_out=held_out, channels=3, noun=noun)


def open_folder(folder: Path, *, crop: int, held_out: float) -> ImageData:
    """Training data of every image below ``folder``, hidden files and folders left out."""
    paths = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found = (Path(parent, name) for name in sorted(names) if not name.startswith("."))
        paths += [path for path in found if path.suffix.lower() in _SUFFIXES]
    if not paths:
        raise UserError(f"no images in {folder} ({', '.join(sorted(_SUFFIXES))} are read)")
    return open_files(paths, crop=crop, held_out=held_out, noun="images")
