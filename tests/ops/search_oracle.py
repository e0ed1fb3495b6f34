"""The contract of the search, checked against a float64 oracle that shares nothing with it."""

import torch
from torch import Tensor


def smallest(z: Tensor, codebook: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z [N, D], codebook [K, D] -> lowest index [N] of the smallest float64 distance [N] over the
    finite codes, and the distance [N] of the `chosen` ones. sum((z - e)^2), nothing cleverer."""
    z, codes = z.double(), codebook.double()
    unusable = ~codes.isfinite().all(dim=1)
    nearest, distance, of_chosen = [], [], []
    step = max(1, (1 << 21) // codes.numel())
    for rows, choice in zip(z.split(step), chosen.split(step), strict=True):
        all_distances = (rows[:, None] - codes).square_().sum(dim=2)
        of_chosen.append(all_distances.gather(1, choice[:, None])[:, 0])
        if not unusable.all():
            all_distances[:, unusable] = torch.inf
        least = all_distances.min(dim=1).values
        # argmax of a mask: the first of equals, which min() does not promise.
        nearest.append((all_distances == least[:, None]).int().argmax(dim=1))
        distance.append(least)
    return torch.cat(nearest), torch.cat(distance), torch.cat(of_chosen)


def wrong_rows(indices: Tensor, z: Tensor, codebook: Tensor) -> int:
    """How many rows of `z` [N, D] got a code that is farther than another."""
    _, least, of_chosen = smallest(z, codebook, indices)
    return int((of_chosen > least * (1 + 1e-12)).sum())


def first_of_duplicates(codebook: Tensor) -> Tensor:
    """For each code the lowest index of a code equal to it, [K]."""
    _, group = torch.unique(codebook.double(), dim=0, return_inverse=True)
    order = torch.arange(len(codebook))
    first = torch.full_like(order, len(codebook)).scatter_reduce(0, group, order, "amin")
    return first[group]


def check(
    result: tuple[Tensor, Tensor], z: Tensor, codebook: Tensor, *, exact_ties: bool = False
) -> None:
    """Asserts that finite rows of `z` [..., D] got what the contract promises.

    exact_ties: the data is such that float64 distances are without rounding, so that the
    index must be the oracle's.
    """
    indices, distances = result
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    assert indices.shape == distances.shape == z.shape[:-1]
    assert indices.dtype == torch.int64
    assert distances.dtype == wide
    if codebook.dim() == 3:
        for h, book in enumerate(codebook):
            check((indices[h], distances[h]), z[h], book, exact_ties=exact_ties)
        return
    z, indices, distances = z.reshape(-1, z.shape[-1]), indices.flatten(), distances.flatten()
    if len(z) == 0:
        return
    assert indices.min() >= 0
    assert indices.max() < len(codebook)
    lowest, least, of_chosen = smallest(z, codebook, indices)
    tolerance = 1e-12 if wide == torch.float64 else 1e-6
    finite = of_chosen.isfinite()
    assert torch.equal(finite, least.isfinite())
    assert (of_chosen[finite] <= least[finite] * (1 + tolerance)).all(), "not the nearest code"
    # The distance is the chosen code's, rounded once. to(wide) may round it to infinity.
    expected = of_chosen.to(wide)
    torch.testing.assert_close(distances, expected, rtol=min(tolerance, 2e-7), atol=0)
    assert (distances >= 0).all()
    usable = codebook.isfinite().all(dim=1)
    assert usable[indices].all()
    if usable.all():
        assert torch.equal(first_of_duplicates(codebook)[indices], indices), "a later duplicate"
    if exact_ties:
        assert torch.equal(indices, lowest), "not the lowest index of a tie"
