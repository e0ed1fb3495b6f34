"""The file of codes that ``vqvae-fast encode`` writes and ``decode`` reads.

It is an .npz of these arrays:

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
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray
from torch import Tensor

from vqvae_fast.atomic import atomic_file
from vqvae_fast.errors import UserError, check_input
from vqvae_fast.models import VQVAE
from vqvae_fast.training.files import MOST_PIXELS
from vqvae_fast.training.npz import UNREADABLE, Header, read_blocks, read_headers
from vqvae_fast.training.reconstruct import grid_of

_FORMAT = "vqvae_fast codes 1"
_PER_IMAGE = ("names", "sizes", "indices")
# The longest single entry is the fingerprint, 64 characters of four bytes.
_SINGLE_BYTES = 1024
_NO_HEADER = Header((), np.dtype(np.void))
# Linux file systems allow names of this many bytes.
_LONGEST_NAME = 255
# These arguments of the model say how it learns; they do not change what indices decode to.
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
    for tensor in (*_weights_of_codes(model), *model.decoder.state_dict().values()):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _weights_of_codes(model: VQVAE) -> list[Tensor]:
    """The codebook if it is among the weights; otherwise the weights that it is computed from.

    A computed codebook may differ between devices in its last bits; its weights do not.
    """
    codebook = model.vector_quantization.codebook
    weights = [
        tensor
        for name, tensor in model.state_dict().items()
        if name.startswith("vector_quantization.")
    ]
    stored = any(tensor.data_ptr() == codebook.data_ptr() for tensor in weights)
    return [codebook] if stored else weights


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
        UserError: there is no such file, it is damaged or of another kind, or another model
            wrote it.
    """
    check_input(path, "codes")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not a file of vqvae-fast encode")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return _read(path, archive, read_headers(path), model)
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path} asks for more memory than there is") from error
    except UNREADABLE as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _read(
    path: Path, archive: NpzFile, headers: dict[str, Header], model: VQVAE
) -> list[ImageCodes]:
    """Read each array only after the headers and the arrays before it have been checked."""
    single = [name for name in ("format", *_identity(model)) if _is_single(headers.get(name))]
    if "format" not in single or str(archive["format"]) != _FORMAT:
        raise UserError(f"{path} is not a file of vqvae-fast encode")
    for name, of_model in _identity(model).items():
        of_file = archive[name].item() if name in single else None
        if of_file != of_model:
            raise UserError(
                f"{path} does not fit the model: {name} is {_short(of_file)} in the file, "
                f"{_short(of_model)} in the model"
            )
    _check_headers(path, headers)
    names = _read_names(path)
    sizes = [(int(height), int(width)) for height, width in archive["sizes"]]
    for name, (height, width) in zip(names, sizes, strict=True):
        if min(height, width) < 1 or height * width > MOST_PIXELS:
            raise UserError(f"{path} is damaged: {name} cannot be of {height}x{width} pixels")
    grids = [grid_of(model, height, width) for height, width in sizes]
    expected, (given,) = sum(rows * columns for rows, columns in grids), headers["indices"].shape
    if given != expected:
        raise UserError(
            f"{path} is damaged: images of these sizes have {expected} codes, it has {given}"
        )
    indices = archive["indices"]
    largest, codes = int(indices.max(initial=0)), model.config["n_embeddings"]
    if largest >= codes:
        raise UserError(f"{path} is damaged: indices must be below {codes}, got {largest}")
    return list(_split(names, sizes, grids, indices))


def _is_single(header: Header | None) -> bool:
    """Whether the header describes one number or a short text."""
    return header is not None and header.shape == () and header.nbytes <= _SINGLE_BYTES


def _check_headers(path: Path, headers: dict[str, Header]) -> None:
    names, sizes, indices = (headers.get(name, _NO_HEADER) for name in _PER_IMAGE)
    if (
        len(names.shape) != 1
        or names.dtype.kind != "U"
        or sizes.shape != (*names.shape, 2)
        or sizes.dtype.kind not in "iu"
        or len(indices.shape) != 1
        or indices.dtype.kind != "u"
    ):
        raise UserError(f"{path} is damaged: names, sizes or indices are not as encode writes them")


def _read_names(path: Path) -> list[str]:
    """Read the names and check that all are valid and differ.

    A small file can repeat a name any number of times: reading ends at the first repeated one.
    """
    names: dict[str, None] = {}
    for block in read_blocks(path, "names"):
        for name in map(str, block):
            # Images get these names; a folder in one would lead out of the user's folder.
            if name in ("", ".", "..") or any(char in name for char in "/\\\0"):
                raise UserError(f"{path} is damaged: {name!r} is not the name of an image")
            if name in names:
                raise UserError(f"{path} is damaged: two of its images have the same name, {name}")
            names[name] = None
    return list(names)


def decoded_name(name: str) -> str:
    """The name of the file that an image is decoded to.

    Raises:
        UserError: it would be too long for a file system, or cannot be written in its encoding.
    """
    decoded = f"{Path(name).stem}.png"
    try:
        length = len(os.fsencode(decoded))
    except UnicodeEncodeError as error:
        raise UserError(f"{name!r} cannot be the name of a file") from error
    if length > _LONGEST_NAME:
        raise UserError(
            f"{name} would be decoded to a file with a name of {length} bytes, at most "
            f"{_LONGEST_NAME} are possible; encode it under a shorter name"
        )
    return decoded


def _identity(model: VQVAE) -> dict[str, int | str]:
    """What a file and a model must agree on; the plainest is compared first, for the message."""
    return {
        "n_embeddings": model.config["n_embeddings"],
        "stride": 2 ** model.config["downsampling"],
        "channels": model.config["in_channels"],
        "fingerprint": fingerprint(model),
    }


def _split(
    names: list[str],
    sizes: list[tuple[int, int]],
    grids: list[tuple[int, int]],
    indices: NDArray[np.unsignedinteger[Any]],
) -> Iterator[ImageCodes]:
    begin = 0
    for name, (height, width), (rows, columns) in zip(names, sizes, grids, strict=True):
        part = indices[begin : begin + rows * columns].astype(np.int64)
        yield ImageCodes(name, height, width, torch.from_numpy(part.reshape(rows, columns)))
        begin += rows * columns


def _short(value: object) -> str:
    """The first 16 characters of a value: enough to tell one fingerprint from another."""
    return str(value)[:16]
