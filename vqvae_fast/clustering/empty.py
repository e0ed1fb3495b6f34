"""Codes without rows move to the rows that lie farthest from their codes."""

import torch
from torch import Tensor

from vqvae_fast.clustering.sums import sums_by_code
from vqvae_fast.distributed import rows_of_all


class Farthest:
    """The rows that lie farthest from their codes, found piece by piece.

    Args:
        number: how many rows are kept at most.
    """

    def __init__(self, number: int):
        self.number = number
        self._kept: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def offer(
        self, rows: Tensor, weights: Tensor | None, labels: Tensor, distances: Tensor
    ) -> None:
        """Take in a piece: rows [n, D], weights [n], labels [n], distances [n]."""
        weights = torch.ones_like(distances) if weights is None else weights
        least: Tensor | float = 0.0
        if self._kept is not None and len(self._kept[0]) == self.number:
            least = self._kept[3][-1]
        candidates = ((distances > least) & (weights > 0)).nonzero()[:, 0]
        best = distances[candidates].topk(min(self.number, len(candidates))).indices
        best = candidates[best]
        new = (rows[best], weights[best].double(), labels[best], distances[best])
        self._kept = new if self._kept is None else self._largest(self._kept, new)

    def fill_empty_(self, sums: Tensor, weights: Tensor, synced: bool) -> None:
        """Give each code without weight a row, in the float64 sums [K, D] and weights [K].

        The row no longer counts for the code that it had (as scikit-learn has it). Each row serves
        one code, and rows at their codes serve none, so fewer distinct rows than codes leave codes
        empty. A row is at its code, too, where no more than the rounding of the mean separates
        them: such rows would otherwise move empty codes in every round.
        """
        empty = (weights == 0).nonzero()[:, 0]
        if len(empty) == 0 or self._kept is None:
            return
        away = self._kept[3] > _rounding(*self._kept[:3], weights)
        kept = tuple(part[away][: len(empty)] for part in self._kept)
        if synced:
            kept = tuple(rows_of_all(part) for part in kept)
            order = kept[3].sort(descending=True, stable=True).indices[: len(empty)]
            kept = tuple(part[order] for part in kept)
        rows, given, labels, _ = kept
        # A code keeps its last row: a code that gave it away would be empty in its turn.
        taken, lost = sums_by_code(rows.double(), given, labels, len(weights))
        sole = (lost >= weights)[labels]
        if sole.any():
            rows, given, labels = rows[~sole], given[~sole], labels[~sole]
            taken, lost = sums_by_code(rows.double(), given, labels, len(weights))
        sums -= taken
        weights -= lost
        filled = empty[: len(rows)]
        sums[filled] = rows.double() * given[:, None]
        weights[filled] = given

    def _largest(
        self, kept: tuple[Tensor, ...], new: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, weights, labels, distances = (
            torch.cat(parts) for parts in zip(kept, new, strict=True)
        )
        best = distances.topk(min(self.number, len(distances))).indices
        return rows[best], weights[best], labels[best], distances[best]


def _rounding(rows: Tensor, given: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Bound the squared distance [n] of rows [n, D] from the computed mean of their copies.

    A code's weight over that of the row estimates how many rows were added in float64; the mean is
    then rounded to the dtype of the rows.
    """
    added = torch.finfo(torch.float64).eps * weights[labels] / given
    relative = 2 * torch.finfo(rows.dtype).eps + added
    return rows.double().square().sum(dim=1) * relative.square()
