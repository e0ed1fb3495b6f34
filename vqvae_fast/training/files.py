"""Reads and writes image files."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError

from vqvae_fast.atomic import atomic_file
from vqvae_fast.errors import UserError, check_input

# In these EXIF orientations width and height change places.
_TURNED = (5, 6, 7, 8)
_ORIENTATION = 0x0112
# Larger images are not read: a small file can hold any number of equal pixels. Pillow's own limit,
# which depends on its version and on the program around it, is not higher by default.
MOST_PIXELS = 178_956_970


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
        elif upright.mode in ("F", "I"):
            # The file does not state the range of these pixels, and Pillow would clip them, too.
            raise UserError(f"{path} has 32-bit pixels, 8 or 16 bits were expected")
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
    """Open an image; every failure is a UserError of one sentence."""
    check_input(path, "image")
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images, but the user has asked for this one.
            warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)
            with Pillow.open(path) as image:
                yield image
    except UserError:
        raise
    except Pillow.DecompressionBombError as error:
        raise UserError(f"{path} is too large to decode: {error}") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not an image that can be read") from error
    except (OSError, SyntaxError, ValueError) as error:
        # Pillow raises SyntaxError for a damaged PNG.
        raise UserError(f"{path} cannot be read as an image: {error}") from error


def check_format(path: Path) -> None:
    """Raise UserError if Pillow cannot write an image under this name."""
    # Pillow also knows formats that it can only read.
    if Pillow.registered_extensions().get(path.suffix.lower()) not in Pillow.SAVE:
        raise UserError(f"{path} must end like an image file, for instance .png")


def write_image(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write [H, W, C] uint8 in the format of the path's suffix, atomically."""
    image = Pillow.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    try:
        with atomic_file(path) as temporary:
            image.save(temporary)
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} cannot be written: {error}") from error
