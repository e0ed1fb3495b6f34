"""Where the codes start: k-means++, or random rows."""

import numpy as np
import torch
from torch import Tensor

from vqvae_fast.clustering.merging import merged
from vqvae_fast.clustering.rounds import assigned, one_round
from vqvae_fast.clustering.rows import Rows, not_finite

# So many rows are drawn at a time; their mutual distances are a square table.
_BLOCK = 512
# So many times as many rows are drawn as there are codes.
_SURPLUS = 2
# More codes than this start as they are drawn: merging them would cost more than it gains, with the
# few rows for each code that there are then.
_MOST_MERGED = 2**16


def plus_plus(data: Rows, num_codes: int, generator: torch.Generator) -> Tensor:
    """Draw twice as many rows as k-means++ would, and merge their clusters to K codes: [K, D].

    A draw often takes two rows of one cluster and none of another. scikit-learn draws several rows
    for each code and keeps the best, which costs 2 + ln K times as much. Twice as many draws reach
    the clusters that one series of draws misses, and the merging takes the superfluous ones back
    (as k-means|| has it, Bahmani et al., 2012, which draws 5 blocks and clusters them). This
    costs a draw of 2 K rows, one round with 2 K codes, and the merging of :func:`merged`. More than
    65536 codes are K rows as they are drawn.

    Args:
        data: N rows.
        num_codes: K. Where there are fewer distinct rows, some codes are copies.
        generator: of the CPU, so that all devices draw the same.

    Raises:
        ValueError: a row is not finite.
    """
    if len(data) <= num_codes or num_codes > _MOST_MERGED:
        return drawn_by_distance(data, num_codes, generator)
    many = drawn_by_distance(data, min(_SURPLUS * num_codes, len(data)), generator)
    found = one_round(data, many)
    return merged(many, found.sums, found.weights, num_codes, generator, data.metric)


def drawn_by_distance(data: Rows, num_codes: int, generator: torch.Generator) -> Tensor:
    """Draw rows as k-means++ does (Arthur and Vassilvitskii, 2007): [K, D].

    Each row is drawn by its weight times its squared distance from the codes drawn before. The
    draws have the distribution of the algorithm that draws one row and then measures all N, but
    come in blocks: a block of proposals is drawn by the distances from the codes before the block,
    and a proposal is accepted with the ratio of its distance now to its distance then (rejection
    sampling; Cohen-Addad et al., 2020, propose by another bound). So N rows are measured once a
    block, against the codes of the block.

    Args:
        data: N rows.
        num_codes: K. Where there are fewer distinct rows, the others are random rows.
        generator: of the CPU.

    Raises:
        ValueError: a row is not finite.
    """
    weights = _weights(data)
    codes = data.take(_draw(weights, 1, generator))
    distances = _lowered(None, data, codes)
    while len(codes) < num_codes:
        proposed = _draw(weights * distances, _BLOCK, generator)
        if len(proposed) == 0:  # every row is a code already
            rest = _draw(weights, num_codes - len(codes), generator)
            return torch.cat([codes, data.take(rest)])
        rows = data.take(proposed)
        accepted = _accepted(rows, distances[proposed], data.metric, generator)[
            : num_codes - len(codes)
        ]
        new = rows[accepted]
        codes = torch.cat([codes, new])
        if len(codes) < num_codes:
            distances = _lowered(distances, data, new)
    return codes


def random_rows(data: Rows, num_codes: int, generator: torch.Generator) -> Tensor:
    """Distinct rows of the data, each drawn by its weight: [K, D]."""
    draws = torch.rand(len(data), dtype=torch.float64, generator=generator)
    # The smallest of exponential / weight is a draw by weight; the smallest K are K distinct ones.
    keys = -(-draws).log1p().to(data.values.device) / _weights(data)
    return data.take(keys.topk(num_codes, largest=False).indices)


def _weights(data: Rows) -> Tensor:
    """float64 [N]."""
    if data.weights is not None:
        return data.weights
    return torch.ones(len(data), dtype=torch.float64, device=data.values.device)


def _draw(weights: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Places int64 [number] by weight [N], with replacement; none if all weights are 0."""
    ends = weights.cumsum(0)
    if not ends[-1] > 0:
        return ends.new_empty(0, dtype=torch.int64)
    draws = torch.rand(number, dtype=torch.float64, generator=generator).to(ends.device)
    places = torch.searchsorted(ends, draws * ends[-1], right=True)
    # A draw may round up to the sum of all weights: the last row with a weight has it.
    last = torch.searchsorted(ends, ends[-1])
    return torch.minimum(places, last)


def _lowered(distances: Tensor | None, data: Rows, codes: Tensor) -> Tensor:
    """Distances [N] of the rows, and from these codes if those are smaller."""
    found = torch.cat([piece.distances for piece in assigned(data, codes)])
    if not found.isfinite().all():
        raise not_finite(data)
    return found if distances is None else torch.minimum(distances, found)


def _accepted(rows: Tensor, before: Tensor, metric: str, generator: torch.Generator) -> Tensor:
    """Which of the proposals [n, D] become codes, in their order: int64 places.

    ``before`` [n]: their distances from the codes before, which are above 0.
    """
    # Each entry is computed by itself, so it has the same bits for every number of threads.
    plain = "donot_use_mm_for_euclid_dist"
    table = torch.cdist(rows.double(), rows.double(), compute_mode=plain).square().cpu().numpy()
    table *= 0.5 if metric == "cosine" else 1.0  # as the distances
    bars = torch.rand(len(rows), dtype=torch.float64, generator=generator).numpy()
    bars *= before.double().cpu().numpy()
    places = []
    nearest = before.double().cpu().numpy()
    for place, bar in enumerate(bars):
        if bar < nearest[place]:
            places.append(place)
            nearest = np.minimum(nearest, table[place])
    return torch.tensor(places, dtype=torch.int64, device=rows.device)
