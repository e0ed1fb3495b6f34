"""A random sample of rows that do not fit into memory, or that several processes have."""

import torch
from torch import Tensor

from vqvae_fast.clustering.rows import Rows, Stream
from vqvae_fast.distributed import numbers_of_all, rows_of_all


def sample(data: Rows | Stream, size: int, generator: torch.Generator, synced: bool) -> Rows:
    """Read all rows once and keep ``size`` of them, drawn uniformly without replacement.

    Args:
        data: the rows.
        size: how many rows to keep; fewer if there are not so many.
        generator: of the CPU; that of each process must be another one.
        synced: draw from the rows of all processes. Each gives a share that fits its number of
            rows, so there may be one more row for each process; all get the same sample.

    Raises:
        ValueError: there are no rows.
    """
    kept: tuple[Tensor, ...] | None = None  # rows, weights, and keys whose largest are kept
    count = 0
    for rows, weights in data:
        count += len(rows)
        keys = torch.rand(len(rows), dtype=torch.float64, generator=generator).to(rows.device)
        weights = torch.ones_like(keys) if weights is None else weights
        new = _largest((rows, weights, keys), size)
        kept = new if kept is None else _largest(_joined(kept, new), size)
    assert kept is not None  # a Stream raises if it has no rows
    if synced:
        counts = numbers_of_all(count, kept[0].device)
        share = -(-min(size, sum(counts)) * count // sum(counts))
        kept = tuple(rows_of_all(part) for part in _largest(kept, share))
    return Rows(kept[0], kept[1], "euclidean", data.num_codes)


def _joined(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(parts) for parts in zip(one, other, strict=True))


def _largest(parts: tuple[Tensor, ...], number: int) -> tuple[Tensor, ...]:
    """The rows whose keys, the last part, are the largest."""
    best = parts[-1].topk(min(number, len(parts[-1]))).indices
    return tuple(part[best] for part in parts)
