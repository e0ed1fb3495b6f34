"""Image files: one reader for training, folders and the command line."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps

from vqvae_fast.training.data.crops import Image, ImageData, split_data
from vqvae_fast.training.errors import UserError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
# Decoded pixels kept in memory; images beyond it are decoded again whenever one is drawn.
_KEEP_BYTES = 1 << 30
# In these EXIF orientations width and height change places.
_TURNED = (5, 6, 7, 8)
_ORIENTATION = 0x0112


def read_image(path: Path, channels: int = 3) -> NDArray[np.uint8]:
    """Read an image file: [H, W, channels] uint8, upright, transparency laid over white.

    Raises:
        UserError: the file is missing, or not an image that Pillow can read.
    """
    with _open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            # Pillow would clip 16 bits at 255 rather than scale them.
            upright = Pillow.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            white = Pillow.new("RGBA", upright.size, (255, 255, 255, 255))
            upright = Pillow.alpha_composite(white, upright)
        pixels = np.asarray(upright.convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(*pixels.shape[:2], channels)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels, read from the header alone."""
    with _open(path) as image:
        width, height = image.size
        turned = image.getexif().get(_ORIENTATION) in _TURNED
    return (width, height) if turned else (height, width)


@contextmanager
def _open(path: Path) -> Iterator[Pillow.Image]:
    """Open an image, with every way of failing told in one sentence."""
    if not path.exists():
        raise UserError(f"image not found: {path}")
    if path.is_dir():
        raise UserError(f"{path} is a folder, an image file was expected")
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images; whoever names one means it.
            warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)
            with Pillow.open(path) as image:
                yield image
    except Pillow.DecompressionBombError as error:
        raise UserError(f"{path} is too large to decode: {error}") from error
    except Pillow.UnidentifiedImageError as error:
        raise UserError(f"{path} is not an image that can be read") from error
    except (OSError, SyntaxError, ValueError) as error:
        # Pillow raises SyntaxError for a damaged PNG.
        raise UserError(f"{path} cannot be read as an image: {error}") from error


class ImageFiles(Sequence[Image]):
    """Image files as a sequence of arrays, decoded once as long as memory allows."""

    def __init__(self, paths: Sequence[Path], sizes: Sequence[tuple[int, int]]) -> None:
        """Decode what may be kept now: a broken file shows before training, not during it."""
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

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | Sequence[Image]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
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
