"""Encodes and decodes images of any size, in tiles."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae_fast.models import VQVAE
from vqvae_fast.training.pixel_scale import to_model_scale, to_pixels

# Side of a tile in latents: 64 latents are 256 pixels at the default downsampling, 50 MB of
# activations at 128 channels.
_TILE = 64


class Reconstruction(NamedTuple):
    """Result of :func:`reconstruct_image`.

    Attributes:
        pixels: [H, W, C] uint8.
        mse: mean squared error of ``pixels``, values in [0, 1].
        latents: number of codes that stand for the image.
        bits_per_pixel: latents * log2(K) / (H * W): what the codes would take if each were stored
            with the same number of bits.
    """

    pixels: NDArray[np.uint8]
    mse: float
    latents: int
    bits_per_pixel: float


class _Span(NamedTuple):
    """A tile along one axis, in latents: what is computed, and the part of it that is kept."""

    begin: int
    end: int
    first: int
    last: int


def reconstruct_image(model: VQVAE, pixels: NDArray[np.uint8], tile: int = _TILE) -> Reconstruction:
    """Encode and decode an image of any size.

    Args:
        model: in eval mode.
        pixels: [H, W, C] uint8, with the model's channels.
        tile: side of a tile in latents, at least 1.
    """
    height, width = pixels.shape[:2]
    indices = encode_image(model, pixels, tile)
    decoded = decode_image(model, indices, height, width, tile)
    latents = indices.numel()
    bits = latents * math.log2(model.config["n_embeddings"])
    return Reconstruction(decoded, _mse(pixels, decoded), latents, bits / (height * width))


def grid_of(model: VQVAE, height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of the indices of an image: its size over the downsampling, rounded up."""
    unit = 2 ** model.config["downsampling"]
    return -(-height // unit), -(-width // unit)


@torch.no_grad()
def encode_image(model: VQVAE, pixels: NDArray[np.uint8], tile: int = _TILE) -> Tensor:
    """The indices of an image of any size, int64 [rows, columns] as :func:`grid_of` counts them.

    The image is reflected at its right and lower edge up to a multiple of the downsampling. Tiles
    overlap by more than a latent's field of view, so the result is that of the whole image in one
    piece, in memory for one tile.

    Args:
        model: in eval mode.
        pixels: [H, W, C] uint8, with the model's channels.
        tile: side of a tile in latents, at least 1.
    """
    unit = 2 ** model.config["downsampling"]
    rows, columns = grid_of(model, *pixels.shape[:2])
    padded = _reflect(pixels, rows * unit, columns * unit)
    device = next(model.parameters()).device
    indices = torch.empty(rows, columns, dtype=torch.int64)
    for y, x in _tiles(rows, columns, tile, _halo(model)):
        part = padded[y.begin * unit : y.end * unit, x.begin * unit : x.end * unit]
        image = torch.from_numpy(to_model_scale(part).transpose(2, 0, 1).copy())[None].to(device)
        _keep(indices, model.encode(image)[0].cpu(), y, x, 1)
    return indices


@torch.no_grad()
def decode_image(
    model: VQVAE, indices: Tensor, height: int, width: int, tile: int = _TILE
) -> NDArray[np.uint8]:
    """The image [height, width, C] uint8 of the indices that :func:`encode_image` returns.

    Args:
        model: in eval mode.
        indices: int64 [rows, columns], each in [0, K).
        height: of the image in pixels; what was reflected beyond it is cut off.
        width: likewise.
        tile: side of a tile in latents, at least 1.
    """
    unit, channels = 2 ** model.config["downsampling"], model.config["in_channels"]
    rows, columns = indices.shape
    device = next(model.parameters()).device
    decoded = np.empty((rows * unit, columns * unit, channels), dtype=np.uint8)
    for y, x in _tiles(rows, columns, tile, _halo(model)):
        image = model.decode(indices[y.begin : y.end, x.begin : x.end][None].to(device))[0]
        _keep(decoded, to_pixels(image), y, x, unit)
    return decoded[:height, :width]


def _halo(model: VQVAE) -> int:
    # A 3x3 convolution sees one latent further, each residual layer one more; the strided
    # convolutions together see less than two. One is added for safety.
    halo: int = model.config["n_res_layers"] + 4
    return halo


def _tiles(rows: int, columns: int, tile: int, halo: int) -> Iterator[tuple[_Span, _Span]]:
    for y in _spans(rows, tile, halo):
        for x in _spans(columns, tile, halo):
            yield y, x


def _spans(length: int, tile: int, halo: int) -> Iterator[_Span]:
    for first in range(0, length, tile):
        last = min(first + tile, length)
        yield _Span(max(0, first - halo), min(length, last + halo), first, last)


def _keep(
    whole: Tensor | NDArray[np.uint8],
    part: Tensor | NDArray[np.uint8],
    y: _Span,
    x: _Span,
    unit: int,
) -> None:
    """Copy a tile without its overlap; ``unit`` elements a latent along each axis."""
    inner = part[
        (y.first - y.begin) * unit : (y.last - y.begin) * unit,
        (x.first - x.begin) * unit : (x.last - x.begin) * unit,
    ]
    whole[y.first * unit : y.last * unit, x.first * unit : x.last * unit] = inner  # type: ignore[assignment]


def _reflect(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    # numpy repeats the reflection where the image is smaller than the padding.
    padding = ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0))
    return np.pad(pixels, padding, mode="reflect")


def _mse(original: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> float:
    """Mean squared error of values in [0, 1]; rows of integers are exact and need little memory."""
    total = sum(
        int(np.square(a.astype(np.int32) - b).sum(dtype=np.int64))
        for a, b in zip(original, decoded, strict=True)
    )
    return total / original.size / 255**2
