"""Sums in float64 that have the same bits for every number of threads."""

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from vqvae_fast import functional

_COLUMNS = 64


def total(numbers: Tensor) -> Tensor:
    """Return the sum of numbers, of any shape, as a 0-d float64 tensor."""
    flat = numbers.detach().reshape(-1).double()
    table = nn_functional.pad(flat, (0, -len(flat) % _COLUMNS)).view(-1, _COLUMNS)
    places = torch.zeros(len(table), dtype=torch.int64, device=flat.device)
    return functional.segment_sum(table, places, 1).sums[0].sum()


def sums_by_code(
    rows: Tensor, weights: Tensor | None, labels: Tensor, num_codes: int
) -> tuple[Tensor, Tensor]:
    """Sum the rows [n, D] of each code, [K, D], and their weights, [K].

    The results are float64 if there are weights, and otherwise have the dtype of the rows.
    """
    if weights is None:
        sums, counts = functional.segment_sum(rows, labels, num_codes)
        return sums, counts
    # In float32 the weights would be rounded, and very small or large ones become 0 or infinite.
    weighted = weights.new_empty(len(rows), rows.shape[1] + 1, dtype=torch.float64)
    torch.mul(rows, weights.double()[:, None], out=weighted[:, :-1])
    weighted[:, -1] = weights
    sums = functional.segment_sum(weighted, labels, num_codes).sums
    return sums[:, :-1], sums[:, -1]
