"""The two scales of pixel values: [0, 255] or [0, 1] in files, [-1, 1] in the model."""

from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Image = NDArray[np.uint8] | NDArray[np.floating[Any]]

Number = TypeVar("Number", float, Tensor)


def to_model_scale(image: Image) -> NDArray[np.float32]:
    """Pixels, uint8 or floats in [0, 1] -> float32 in [-1, 1]."""
    unit = 255 if image.dtype == np.uint8 else 1
    return image.astype(np.float32) * np.float32(2 / unit) - np.float32(1)


def to_pixels(image: Tensor) -> NDArray[np.uint8]:
    """[C, H, W] in [-1, 1] -> [H, W, C] uint8, rounded, values beyond the range clipped."""
    pixels = image.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(1, 2, 0).cpu().numpy()


def mse_of_pixels(mse: Number) -> Number:
    """A mean squared error of values in [-1, 1] -> that of pixel values in [0, 1]."""
    return mse / 4  # a difference of 2 is one of 1
