"""Clusters that lie close to each other become one, until there are as many as wanted."""

import torch
from torch import Tensor

from vqvae_fast import functional
from vqvae_fast.clustering.rounds import moved_to_means

# The share of the surplus that one iteration merges, so that the cheapest pairs go first.
_SHARE = 4


def merged(
    codes: Tensor,
    sums: Tensor,
    weights: Tensor,
    num_codes: int,
    generator: torch.Generator,
    metric: str,
) -> Tensor:
    """Merge clusters pairwise, those first that cost the least inertia, and return [K, D] codes.

    Two clusters of weights v and w whose means lie the distance d apart cost v w / (v + w) d^2
    (Ward, 1963; for codebooks: Equitz, 1989). Each iteration divides the clusters into two halves
    at random, finds the nearest mean in the second half for each mean of the first, and merges the
    cheapest of these pairs, a quarter of the surplus. So M clusters cost M^2 / 4 distances an
    iteration, about 3 ln M iterations, and no memory of M x M.

    Args:
        codes: [M, D], where clusters without rows are.
        sums: float64 [M, D], of each cluster's rows.
        weights: float64 [M], how many rows that is.
        num_codes: K, at most M.
        generator: of the CPU.
        metric: "euclidean", or "cosine", whose codes have unit length.
    """
    unit_length = metric == "cosine"
    codes = moved_to_means(codes, sums, weights, unit_length=unit_length)
    while len(codes) > num_codes:
        order = torch.randperm(len(sums), generator=generator).to(sums.device)
        one, other = order.tensor_split(2)
        near, distances = functional.nearest_code(codes[one], codes[other])
        partner = other[near]
        both = weights[one] + weights[partner]
        share = weights[partner] / torch.where(both > 0, both, 1)  # the product could underflow
        costs = distances * weights[one] * share
        # Several clusters may have the same partner. The one that costs least merges with it now.
        cheapest = costs.argsort(stable=True)
        first = torch.full_like(order, len(cheapest))
        ranks = torch.arange(len(cheapest), device=order.device)
        first.scatter_reduce_(0, partner[cheapest], ranks, "amin")
        chosen = cheapest[first[partner[cheapest]] == ranks]
        chosen = chosen[: -(-(len(codes) - num_codes) // _SHARE)]
        gone, into = one[chosen], partner[chosen]
        sums = sums.index_add(0, into, sums[gone])  # each code is at most once in `into`
        weights = weights.index_add(0, into, weights[gone])
        stays = torch.ones_like(order, dtype=torch.bool)
        stays[gone] = False
        sums, weights = sums[stays], weights[stays]
        codes = moved_to_means(codes[stays], sums, weights, unit_length=unit_length)
    return codes
