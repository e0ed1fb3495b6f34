"""The rows to cluster: a matrix in memory, or batches that are read once a round."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vqvae_fast.dtypes import distance_dtype
from vqvae_fast.formulas import directions

METRICS = ("euclidean", "cosine")
# A piece of the rows has at least this many numbers, and at least this many rows for each code:
# the sums of a piece, [K, D], then cost little beside its search.
_NUMBERS = 2**22
_ROWS_PER_CODE = 4


class Piece(NamedTuple):
    """Rows [n, D] as the search takes them, float32 or float64, and their weights [n], if any."""

    rows: Tensor
    weights: Tensor | None


class Rows:
    """A matrix in memory. Iterating yields its pieces.

    Args:
        values: [N, D], a float dtype, any strides.
        weights: [N], or None: every row counts once.
        metric: "euclidean" or "cosine", which makes rows of unit length.
        num_codes: K, from which the size of a piece follows.
        dtype: of the pieces; distance_dtype of the values unless given.
    """

    def __init__(
        self,
        values: Tensor,
        weights: Tensor | None,
        metric: str,
        num_codes: int,
        dtype: torch.dtype | None = None,
    ):
        self.values, self.weights, self.metric = values, weights, metric
        self.num_codes = num_codes
        self.dtype = distance_dtype(values.dtype) if dtype is None else dtype

    def __len__(self) -> int:
        return len(self.values)

    @property
    def device(self) -> torch.device:
        """The device of the rows."""
        return self.values.device

    @property
    def dim(self) -> int:
        """D, the length of a row."""
        return self.values.shape[1]

    def __iter__(self) -> Iterator[Piece]:
        size = max(_NUMBERS // self.dim, _ROWS_PER_CODE * self.num_codes)
        for first in range(0, len(self), size):
            piece = slice(first, first + size)
            weights = None if self.weights is None else self.weights[piece]
            yield Piece(self._prepared(self.values[piece]), weights)

    def all(self) -> Tensor:
        """Return all rows, as the search takes them: [N, D]."""
        return self._prepared(self.values)

    def take(self, places: Tensor) -> Tensor:
        """Return the rows at places int64 [n], as the search takes them: [n, D]."""
        return self._prepared(self.values[places])

    def _prepared(self, rows: Tensor) -> Tensor:
        rows = rows.to(self.dtype)
        return directions(rows) if self.metric == "cosine" else rows


class Stream:
    """Batches from an iterable that can be read many times, such as a DataLoader.

    Iterating reads all batches once and yields their pieces.

    Args:
        batches: yields [n, D] tensors or arrays, or tuples that begin with one.
        metric: as for :class:`Rows`.
        num_codes: as for :class:`Rows`.
        device: the batches are moved there; None leaves each where it is.

    Raises:
        TypeError: the iterable can be read only once.
    """

    def __init__(
        self, batches: Iterable[Any], metric: str, num_codes: int, device: torch.device | None
    ):
        if isinstance(batches, Iterator):
            raise TypeError(
                "X must be an iterable that can be read once a round, such as a DataLoader or a "
                f"list of batches, got {type(batches).__name__}, which can be read only once: "
                "partial_fit takes one batch at a time"
            )
        self.batches, self.metric, self.num_codes, self.device = batches, metric, num_codes, device
        self.gave_arrays = False
        self.dtype: torch.dtype | None = None  # of the pieces; None: as Rows has it

    def __iter__(self) -> Iterator[Piece]:
        dim = None
        for batch in self.batches:
            batch = batch[0] if isinstance(batch, (tuple, list)) else batch
            self.gave_arrays = not isinstance(batch, Tensor)
            values = as_rows(batch, self.device)
            if dim not in (None, values.shape[1]):
                raise ValueError(f"batches must be [n, D={dim}], got {list(values.shape)}")
            dim = values.shape[1]
            yield from Rows(values, None, self.metric, self.num_codes, self.dtype)


def is_stream(x: Any) -> bool:
    """Whether x is an iterable of batches, not one matrix."""
    if isinstance(x, Tensor) or hasattr(x, "__array__") or hasattr(x, "toarray"):
        return False
    if isinstance(x, (list, tuple)):  # a matrix may come as lists of numbers
        return len(x) > 0 and isinstance(x[0], (Tensor, np.ndarray)) and x[0].ndim == 2
    return hasattr(x, "__iter__") and not isinstance(x, (str, bytes, dict))


def as_rows(x: Any, device: torch.device | None = None) -> Tensor:
    """Return a matrix as a tensor [n, D] of a float dtype, without gradient.

    Arrays of whole numbers become float64, as scikit-learn has it.

    Raises:
        TypeError: x is sparse, or its dtype is no float type.
        ValueError: it is not [n >= 1, D >= 1].
    """
    if hasattr(x, "toarray"):
        raise TypeError("X must be dense, got a sparse matrix: pass X.toarray()")
    if isinstance(x, Tensor):
        rows = x.detach()
        if not rows.is_floating_point():
            raise TypeError(f"X must be a tensor of a float dtype, got {rows.dtype}")
    else:
        array = np.asarray(x)
        if array.dtype.kind == "c":
            raise ValueError(f"X must be real: Complex data not supported, got {array.dtype}")
        if array.dtype not in (np.float16, np.float32, np.float64):
            array = array.astype(np.float64)
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()  # torch takes no other
        rows = torch.from_numpy(array)
    if rows.dim() != 2:
        raise ValueError(
            f"X must be [n, D], got {list(rows.shape)}. Reshape your data: "
            "X.reshape(-1, 1) has one feature, X.reshape(1, -1) one sample"
        )
    if rows.shape[0] == 0:
        raise ValueError(
            f"X must have rows: found 0 sample(s) (shape={tuple(rows.shape)}), "
            "a minimum of 1 is required"
        )
    if rows.shape[1] == 0:
        raise ValueError(
            f"X must have columns: 0 feature(s) (shape={tuple(rows.shape)}) while "
            "a minimum of 1 is required."
        )
    return rows if device is None else rows.to(device)


def as_weights(sample_weight: Any, rows: Tensor) -> Tensor | None:
    """Return the weights of rows [N, D] as float64 [N] on their device; None stays None.

    Raises:
        ValueError: they are not [N], not finite, negative, or all zero.
    """
    if sample_weight is None:
        return None
    given = sample_weight if isinstance(sample_weight, Tensor) else np.asarray(sample_weight)
    weights = torch.as_tensor(given).to(rows.device, torch.float64)
    if weights.shape != rows.shape[:1]:
        raise ValueError(f"sample_weight must be [N={len(rows)}], got {list(weights.shape)}")
    if not weights.isfinite().all() or (weights < 0).any() or not (weights > 0).any():
        raise ValueError("sample_weight must be finite, not negative, and not zero for all rows")
    return weights


def not_finite(data: "Rows | Stream") -> ValueError:
    """Return the error that says why distances of these rows are not finite.

    The sums of distances show that a row is not finite, so the rows are read for the message alone.
    """
    for rows, _ in data:
        if rows.isnan().any():
            zeros = " or a row of zeros, which has no direction" if data.metric == "cosine" else ""
            return ValueError(f"X must be finite, but the input contains NaN{zeros}")
        if rows.isinf().any():
            return ValueError("X must be finite, but the input contains infinity")
    return ValueError("X must have squared distances below the largest float32: scale it down")
