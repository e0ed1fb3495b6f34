"""Random rows of a batch of latents: no sort of the batch, no copy of it, no wait for the device.

Draws come from torch's default generator of the latents' device: ``torch.manual_seed`` repeats
them.
"""

import torch
from torch import Tensor


def stratified_positions(
    rank: Tensor, strata: Tensor, total: int, draws: Tensor | None = None
) -> Tensor:
    """A random position below ``total`` for every rank: distinct while ``strata <= total``.

    The positions are cut into as many equal strata as there are draws, and draw number r is
    uniform in stratum r. Every position has the same chance up to rounding, and no permutation
    of all of them is needed.

    Args:
        rank: int64 [K], number of the draw, 0 to strata - 1; others get some valid position.
        strata: 0-d int64, number of draws, at least 1.
        total: number of positions, at least 1.
        draws: [K], uniform in [0, 1); drawn here unless given.

    Returns:
        [K] int64 in [0, total).
    """
    low = rank * total // strata
    width = (rank + 1) * total // strata - low
    if draws is None:
        draws = torch.rand(rank.shape, device=rank.device)
    step = (draws * width).long()
    # float32 rounds a draw just below 1 up to the whole width when the stratum is long.
    return (low + torch.minimum(step, (width - 1).clamp(min=0))) % total


def take_rows(z: Tensor, positions: Tensor) -> Tensor:
    """Rows of z by their position in row-major order of all dimensions but the last.

    Args:
        z: [..., D], any strides; it is not made contiguous.
        positions: int64 [n].

    Returns:
        [n, D].
    """
    index: list[Tensor] = []
    for size in reversed(z.shape[:-1]):
        index.insert(0, positions % size)
        positions = positions // size
    return z[tuple(index)]


def random_rows(z: Tensor, rank: Tensor, strata: Tensor, draws: Tensor | None = None) -> Tensor:
    """Rows of z at :func:`stratified_positions`; zeros where z has none.

    Args:
        z: [..., D], any strides.
        rank: int64 [K], as for :func:`stratified_positions`.
        strata: 0-d int64, the same.
        draws: [K], the same.

    Returns:
        [K, D].
    """
    count = z.shape[:-1].numel()
    if count == 0:
        return z.new_zeros(len(rank), z.shape[-1])
    return take_rows(z, stratified_positions(rank, strata, count, draws))


def shuffled(valid: Tensor) -> tuple[Tensor, Tensor]:
    """The positions of all rows in random order, those that are not valid behind the others.

    Where all are valid, the order is ``torch.randperm``'s.

    Args:
        valid: bool [n].

    Returns:
        int64 [n], and the number of valid rows, 0-d.
    """
    order = torch.randperm(len(valid), device=valid.device)
    valid = valid.gather(0, order)  # torch.compile does not get over an index by a permutation
    ahead = valid.cumsum(0)
    count = valid.sum()
    behind = count + (~valid).cumsum(0)
    place = torch.where(valid, ahead, behind) - 1
    return torch.empty_like(order).scatter_(0, place, order), count
