"""Lloyd's algorithm (Lloyd, 1982): rounds that search, sum and move the codes to the means."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from vqvae_fast import functional
from vqvae_fast.clustering.empty import Farthest
from vqvae_fast.clustering.rows import Rows, Stream, not_finite
from vqvae_fast.clustering.sums import sums_by_code, total
from vqvae_fast.distributed import summed
from vqvae_fast.packed import pack


class Assigned(NamedTuple):
    """A piece of the rows with the nearest code of each.

    ``distances``: squared Euclidean, or 1 - cosine.
    """

    rows: Tensor
    weights: Tensor | None
    labels: Tensor
    distances: Tensor

    @property
    def inertia(self) -> Tensor:
        """The weighted sum of the distances, 0-d float64."""
        weights = self.weights
        return total(self.distances if weights is None else self.distances.double() * weights)


class Sums(NamedTuple):
    """What a round finds: float64 sums [K, D] of the rows, weights [K], inertia 0-d."""

    sums: Tensor
    weights: Tensor
    inertia: Tensor


class Clustering(NamedTuple):
    """The result of :func:`lloyd`: codes [K, D], their inertia, and how many rounds it took."""

    codes: Tensor
    inertia: float
    rounds: int


def assigned(data: Rows | Stream, codes: Tensor) -> Iterator[Assigned]:
    """Search the nearest code of every row, piece by piece; codes [K, D] in the rows' dtype."""
    packed = pack(codes)
    for rows, weights in data:
        labels, distances = functional.nearest_code(rows, packed)
        # On the unit sphere |a - b|^2 = 2 (1 - a.b).
        distances = distances / 2 if data.metric == "cosine" else distances
        yield Assigned(rows, weights, labels, distances)


def one_round(
    data: Rows | Stream,
    codes: Tensor,
    *,
    labels: Tensor | None = None,
    farthest: Farthest | None = None,
    synced: bool = False,
) -> Sums:
    """Sum the rows by their nearest codes [K, D].

    Args:
        data: N rows.
        codes: [K, D], in the rows' dtype.
        labels: int64 [N]; the index of every row's code is written there.
        farthest: gets the rows and their distances.
        synced: sum over the rows of all processes.

    Raises:
        ValueError: a row is not finite.
    """
    num_codes = len(codes)
    sums = torch.zeros(codes.shape, dtype=torch.float64, device=codes.device)
    weights, inertia = sums.new_zeros(num_codes), sums.new_zeros(())
    place = 0
    for piece in assigned(data, codes):
        added, counted = sums_by_code(piece.rows, piece.weights, piece.labels, num_codes)
        sums += added
        weights += counted
        inertia += piece.inertia
        if farthest is not None:
            farthest.offer(piece.rows, piece.weights, piece.labels, piece.distances)
        if labels is not None:
            labels[place : place + len(piece.labels)] = piece.labels
            place += len(piece.labels)
    if synced:
        sums, weights, inertia = summed(sums, weights, inertia)
    if not inertia.isfinite():
        raise not_finite(data)
    return Sums(sums, weights, inertia)


def moved_to_means(
    codes: Tensor, sums: Tensor, weights: Tensor, *, unit_length: bool = False
) -> Tensor:
    """Return codes [..., K, D] at the means of their rows; one without rows stays where it is.

    Args:
        codes: [..., K, D].
        sums: [..., K, D], of the rows of each code.
        weights: [..., K], how many rows that is.
        unit_length: give the means the length 1; a mean of zero has no direction, so its code
            stays, too.
    """
    divisor = torch.where(weights > 0, weights, 1)
    means = sums / divisor[..., None]
    moves = weights > 0
    if unit_length:
        means = nn_functional.normalize(means, dim=-1)
        moves = moves & (means != 0).any(dim=-1)
    return torch.where(moves[..., None], means.to(codes.dtype), codes)


def lloyd(
    data: Rows | Stream,
    codes: Tensor,
    *,
    max_iter: int,
    tol: float,
    labels: Tensor | None = None,
    synced: bool = False,
    report: Callable[[str], None] | None = None,
) -> Clustering:
    """Move codes [K, D] to the means of their rows until they stand still.

    Args:
        data: the rows; each round reads them once, and so does the last search.
        codes: where the codes start, in the rows' dtype.
        max_iter: the largest number of rounds.
        tol: the rounds end when the squared distances that the codes have moved, added up, are at
            most ``tol`` times the mean variance of the rows' columns.
        labels: int64 [N], for the index of every row's code in the end.
        synced: the rows of all processes count.
        report: gets a line about each round.

    Raises:
        ValueError: a row is not finite.
    """
    limit = 0.0
    for number in range(1, max_iter + 1):
        farthest = Farthest(len(codes))
        found = one_round(data, codes, labels=labels, farthest=farthest, synced=synced)
        if number == 1 and tol > 0:
            limit = tol * _mean_variance(found, codes, data.metric)
        farthest.fill_empty_(found.sums, found.weights, synced)
        moved = moved_to_means(
            codes, found.sums, found.weights, unit_length=data.metric == "cosine"
        )
        shift = float(total((moved.double() - codes.double()).square()))
        if report is not None:
            report(f"round {number}: inertia {float(found.inertia):.7g}, shift {shift:.3g}")
        codes = moved
        if shift <= limit:
            break
    inertia = float(found.inertia)
    if shift > 0:  # otherwise the last search was among these codes
        last = one_round(data, codes, labels=labels, synced=synced)
        inertia = float(last.inertia)
    return Clustering(codes, inertia, number)


def _mean_variance(found: Sums, codes: Tensor, metric: str) -> float:
    """The mean variance of the rows' columns, from their distances to the codes.

    |x - m|^2 = |x - c|^2 + 2 (x - c).(c - m) + |c - m|^2 for a row x, its code c and the mean m,
    where no term is larger than the spread of the rows, however far from zero they lie.
    """
    whole = found.weights.sum()
    mean = found.sums.sum(dim=0) / whole
    away = codes.double() - mean
    rest = found.sums - found.weights[:, None] * codes.double()
    squares = found.inertia * (2 if metric == "cosine" else 1)
    spread = squares + 2 * (rest * away).sum() + (found.weights * away.square().sum(dim=1)).sum()
    return max(float(spread / whole) / codes.shape[1], 0.0)
