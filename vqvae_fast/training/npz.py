"""Reads arrays of a .npz file, whose headers are checked before an array takes memory."""

import io
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

# The errors that reading a damaged file raises.
UNREADABLE = (
    OSError,
    KeyError,
    ValueError,
    EOFError,
    RuntimeError,  # zipfile's, of encrypted files
    NotImplementedError,  # zipfile's, of other compressions
    zipfile.BadZipFile,
    zlib.error,
)
# Plain arrays have shorter headers; a compressed file can hold a header of 4 GB.
_LONGEST_HEADER = 2**16


class Header(NamedTuple):
    """Shape and dtype of an array, as the file states them."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_headers(path: Path) -> dict[str, Header]:
    """The headers of all arrays, by name.

    Raises:
        OSError, zipfile.BadZipFile: the file cannot be read, or is not a .npz.
        ValueError: a header cannot be read, or the file has more or less than its array.
    """
    headers = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name in headers or name == entry.filename:
                # NumPy would read another array by this name than the one that is checked.
                raise ValueError(f"{entry.filename!r} is not the only array of its name, NAME.npy")
            with archive.open(entry) as file:
                header, length = _read_header(file)
            # The size of Python objects is unknown; numpy refuses them later.
            if not header.dtype.hasobject and length + header.nbytes != entry.file_size:
                raise ValueError(
                    f"{entry.filename} must have {header.nbytes} bytes for {list(header.shape)}, "
                    f"got {entry.file_size - length}"
                )
            headers[name] = header
    return headers


def read_blocks(path: Path, name: str, rows: int = 4096) -> Iterator[NDArray[Any]]:
    """Read an array [N] block by block, so that the caller can stop early."""
    with zipfile.ZipFile(path) as archive:
        with archive.open(f"{name}.npy") as file:
            header, length = _read_header(file)
        with archive.open(f"{name}.npy") as file:
            file.read(length)
            for begin in range(0, header.shape[0], rows):
                count = min(rows, header.shape[0] - begin)
                part = file.read(count * header.dtype.itemsize)
                yield np.frombuffer(part, header.dtype, count)


def _read_header(file: IO[bytes]) -> tuple[Header, int]:
    """The header at the beginning of an array, and its length in bytes."""
    begin = io.BytesIO(file.read(_LONGEST_HEADER))
    # Version 3 differs from 2 in the encoding of field names, which plain arrays do not have.
    version = npy.read_magic(begin)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(begin)
    return Header(shape, dtype), begin.tell()
