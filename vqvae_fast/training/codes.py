"""Codes of images in a file: what ``vqvae-fast encode`` writes and ``decode`` reads.

An .npz of plain arrays, one entry each:

    format        "vqvae_fast codes 1"
    n_embeddings  K
    stride        pixels of a code along each axis
    channels      of the images
    fingerprint   of the codebook and the decoder
    names         [n] file names of the images
    sizes         [n, 2] their heights and widths in pixels
    indices       all indices, image after image, row after row; the smallest unsigned type for K
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae_fast.models import VQVAE
from vqvae_fast.training.atomic import atomic_file
from vqvae_fast.training.errors import UserError
from vqvae_fast.training.reconstruct import grid_of

_FORMAT = "vqvae_fast codes 1"
_ENTRIES = ("n_embeddings", "stride", "channels", "fingerprint", "names", "sizes", "indices")
# What an image decodes to does not depend on how the codebook was learned.
_LEARNING = ("beta", "legacy", "quantizer")


class ImageCodes(NamedTuple):
    """The codes of one image.

    Attributes:
        name: file name of the image, without folders.
        height: of the image in pixels.
        width: likewise.
        indices: int64 [rows, columns].
    """

    name: str
    height: int
    width: int
    indices: Tensor


def fingerprint(model: VQVAE) -> str:
    """Hash of all that turns indices into an image: shape, codebook and decoder of the model."""
    shape = {key: value for key, value in model.config.items() if key not in _LEARNING}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    for tensor in (model.vector_quantization.codebook, *model.decoder.state_dict().values()):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_codes(path: Path, model: VQVAE, images: Sequence[ImageCodes]) -> None:
    """Write the codes of at least one image, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    indices = torch.cat([image.indices.flatten() for image in images]).numpy()
    arrays: dict[str, Any] = {
        "format": _FORMAT,
        **_identity(model),
        "names": np.array([image.name for image in images]),
        "sizes": np.array([(image.height, image.width) for image in images], dtype=np.int64),
        "indices": indices.astype(np.min_scalar_type(model.config["n_embeddings"] - 1)),
    }
    try:
        with atomic_file(path) as temporary:
            np.savez_compressed(temporary, **arrays)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def read_codes(path: Path, model: VQVAE) -> list[ImageCodes]:
    """Read codes and make sure that ``model`` can decode them.

    Raises:
        UserError: no such file, damaged or of another kind, or written with another model.
    """
    arrays = _arrays(path)
    for name, of_model in _identity(model).items():
        of_file = arrays[name].item() if arrays[name].ndim == 0 else None
        if of_file != of_model:
            raise UserError(
                f"{path} does not fit the model: {name} is {_short(of_file)} in the file, "
                f"{_short(of_model)} in the model"
            )
    names, sizes, indices = arrays["names"], arrays["sizes"], arrays["indices"]
    if (
        names.ndim != 1
        or names.dtype.kind != "U"
        or sizes.shape != (len(names), 2)
        or sizes.dtype.kind not in "iu"
        or (sizes < 1).any()
        or indices.ndim != 1
        or indices.dtype.kind != "u"
    ):
        raise UserError(f"{path} is damaged: names, sizes or indices are not as encode writes them")
    grids = [grid_of(model, int(height), int(width)) for height, width in sizes]
    expected = sum(rows * columns for rows, columns in grids)
    if len(indices) != expected:
        raise UserError(
            f"{path} is damaged: images of these sizes have {expected} codes, it has {len(indices)}"
        )
    largest, codes = int(indices.max(initial=0)), model.config["n_embeddings"]
    if largest >= codes:
        raise UserError(f"{path} is damaged: indices must be below {codes}, got {largest}")
    return list(_split(path, names, sizes, grids, indices))


def _identity(model: VQVAE) -> dict[str, int | str]:
    """What a file and a model must agree on, the most telling first."""
    return {
        "n_embeddings": model.config["n_embeddings"],
        "stride": 2 ** model.config["downsampling"],
        "channels": model.config["in_channels"],
        "fingerprint": fingerprint(model),
    }


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    if not path.exists():
        raise UserError(f"codes not found: {path}")
    foreign = UserError(f"{path} is not a file of vqvae-fast encode")
    if path.is_dir() or not zipfile.is_zipfile(path):
        raise foreign
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "format" not in archive or str(archive["format"]) != _FORMAT:
                raise foreign
            return {name: archive[name] for name in _ENTRIES}
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path} is damaged: it asks for more memory than there is") from error
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _split(
    path: Path,
    names: NDArray[np.str_],
    sizes: NDArray[np.int64],
    grids: list[tuple[int, int]],
    indices: NDArray[np.unsignedinteger[Any]],
) -> Iterator[ImageCodes]:
    begin = 0
    for name, (height, width), (rows, columns) in zip(names, sizes, grids, strict=True):
        # Images are written under these names: a folder in one would lead out of the user's.
        if not name or name in (".", "..") or any(char in name for char in "/\\\0"):
            raise UserError(f"{path} is damaged: {str(name)!r} is not the name of an image")
        part = indices[begin : begin + rows * columns].astype(np.int64)
        yield ImageCodes(
            str(name), int(height), int(width), torch.from_numpy(part.reshape(rows, columns))
        )
        begin += rows * columns


def _short(value: object) -> str:
    """Sixteen digits of a fingerprint tell it from any other."""
    return str(value)[:16]
