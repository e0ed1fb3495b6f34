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
_LARGEST_WEIGHT = 1e-200, 1e200  # the range of the largest sample_weight


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
        TypeError: the iterable can be read only once; when read, a batch is no matrix.
        ValueError: when read, it has no rows, another number of rows than at the first reading, or
            batches of several D or dtypes.
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
        self.dim: int | None = None  # D; None: that of the first batch
        self._given: torch.dtype | None = None  # the dtype of the first batch
        self._count: int | None = None  # the number of rows of the first reading

    def __iter__(self) -> Iterator[Piece]:
        count = 0
        for batch in self.batches:
            batch = first_part(batch)
            self.gave_arrays = not isinstance(batch, Tensor)
            values = as_rows(batch, self.device)
            self._check(values)
            count += len(values)
            yield from Rows(values, None, self.metric, self.num_codes, self.dtype)
        if self._count not in (None, count):
            raise ValueError(
                "the iterable must give the same rows at every reading: "
                f"gave {self._count}, then {count}"
            )
        if count == 0:
            raise ValueError("X must have rows, but its batches have none")
        self._count = count

    def _check(self, values: Tensor) -> None:
        """Raise if a batch does not fit the batches before."""
        if self.dim not in (None, values.shape[1]):
            raise ValueError(f"batches must be [n, D={self.dim}], got {list(values.shape)}")
        self.dim = values.shape[1]
        if self._given is None:
            self._given = values.dtype
        differs = distance_dtype(values.dtype) != distance_dtype(self._given)
        if self.dtype is None and differs:
            raise ValueError(f"batches must have one dtype, got {self._given}, then {values.dtype}")


def first_part(batch: Any) -> Any:
    """Return the tensor or array of a batch, which may be a tuple or list that begins with it.

    Raises:
        TypeError: there is none.
    """
    first = batch[0] if isinstance(batch, (tuple, list)) and len(batch) > 0 else batch
    if isinstance(first, Tensor) or hasattr(first, "__array__") or hasattr(first, "toarray"):
        return first
    inside = "" if first is batch else f" that begins with {type(first).__name__}"
    raise TypeError(
        f"batches must be tensors or (tensor, ...) tuples, got {type(batch).__name__}{inside}"
    )


def is_stream(x: Any) -> bool:
    """Whether x is an iterable of batches, not one matrix."""
    if isinstance(x, Tensor) or hasattr(x, "__array__") or hasattr(x, "toarray"):
        return False
    if isinstance(x, (list, tuple)):  # a matrix may come as lists of numbers
        first = x[0] if len(x) > 0 else None
        if isinstance(first, (list, tuple)) and len(first) > 0:
            first = first[0]
        return isinstance(first, (Tensor, np.ndarray)) and first.ndim == 2
    return hasattr(x, "__iter__") and not isinstance(x, (str, bytes, dict))


def as_rows(x: Any, device: torch.device | None = None, *, name: str = "X") -> Tensor:
    """Return a matrix as a tensor [n, D] of a float dtype, without gradient.

    Arrays of whole numbers become float64, as scikit-learn has it. ``name``: of the argument, for
    messages.

    Raises:
        TypeError: x is sparse, or its dtype is no float type.
        ValueError: it is not [n >= 1, D >= 1].
    """
    if hasattr(x, "toarray"):
        raise TypeError(f"{name} must be dense, got a sparse matrix: pass {name}.toarray()")
    if isinstance(x, Tensor):
        rows = x.detach()
        if not rows.is_floating_point():
            raise TypeError(f"{name} must be a tensor of a float dtype, got {rows.dtype}")
    else:
        array = np.asarray(x)
        if array.dtype.kind == "c":
            raise ValueError(f"{name} must be real: Complex data not supported, got {array.dtype}")
        if array.dtype not in (np.float16, np.float32, np.float64):
            array = array.astype(np.float64)
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()  # torch takes no other
        rows = torch.from_numpy(array)
    if rows.dim() != 2:
        raise ValueError(
            f"{name} must be [n, D], got {list(rows.shape)}. Reshape your data: "
            f"{name}.reshape(-1, 1) has one feature, {name}.reshape(1, -1) one sample"
        )
    if rows.shape[0] == 0:
        raise ValueError(
            f"{name} must have rows: found 0 sample(s) (shape={tuple(rows.shape)}), "
            "a minimum of 1 is required"
        )
    if rows.shape[1] == 0:
        raise ValueError(
            f"{name} must have columns: 0 feature(s) (shape={tuple(rows.shape)}) while "
            "a minimum of 1 is required."
        )
    return rows if device is None else rows.to(device)


def as_weights(sample_weight: Any, rows: Tensor) -> Tensor | None:
    """Return the weights of rows [N, D] as float64 [N] on their device; None stays None.

    Raises:
        ValueError: they are not [N], not finite, negative, all zero, or out of range.
    """
    if sample_weight is None:
        return None
    given = sample_weight if isinstance(sample_weight, Tensor) else np.asarray(sample_weight)
    weights = torch.as_tensor(given).to(rows.device, torch.float64)
    if weights.shape != rows.shape[:1]:
        raise ValueError(f"sample_weight must be [N={len(rows)}], got {list(weights.shape)}")
    if not weights.isfinite().all() or (weights < 0).any() or not (weights > 0).any():
        raise ValueError("sample_weight must be finite, not negative, and not zero for all rows")
    largest = float(weights.max())
    low, high = _LARGEST_WEIGHT
    if not low <= largest <= high:  # products with distances would leave the range of float64
        raise ValueError(
            f"the largest sample_weight must be between {low:g} and {high:g}, got {largest:g}: "
            "scale all weights by one number"
        )
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
