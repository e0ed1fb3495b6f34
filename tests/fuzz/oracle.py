"""The contract of the search in plain PyTorch and float64. It imports nothing of the package.

In the words of the contract: for every row, the distance of the chosen code exceeds the smallest
distance by no more than rounding; exact duplicates and exact ties go to the lowest index; a row
with a NaN gets index 0 and distance NaN; a code with a NaN or an infinity is never chosen unless
every code is such, then it is code 0; distances are sum((z - e)^2), never negative.
"""

import torch
from torch import Tensor

# Elements of the largest temporary.
_CHUNK = 1 << 22


def all_distances(z: Tensor, codebook: Tensor) -> Tensor:
    """z [n, D], codebook [K, D] -> float64 [n, K], infinite for codes that are not finite."""
    distances = (z.double()[:, None] - codebook.double()).square_().sum(dim=2)
    unusable = ~codebook.isfinite().all(dim=1)
    distances[:, unusable] = torch.inf
    return distances


def first_of_equals(codebook: Tensor) -> Tensor:
    """For every code the lowest index of a code that is equal to it, [K]."""
    _, group = torch.unique(codebook.double(), dim=0, return_inverse=True)
    order = torch.arange(len(codebook))
    first = torch.full_like(order, len(codebook)).scatter_reduce(0, group, order, "amin")
    return first[group]


def rounding(dim: int) -> float:
    """Relative error of a float64 sum of `dim` squares of differences."""
    return (dim + 4) * 2.0**-53


def check_search(
    z: Tensor, codebook: Tensor, indices: Tensor, distances: Tensor, *, exact: bool = False
) -> None:
    """Raise an AssertionError where a search of z [N, D] in codebook [K, D] breaks the contract.

    Args:
        z: the rows.
        codebook: the codes.
        indices: what was chosen, [N].
        distances: what was measured, [N].
        exact: float64 distances of these data have no rounding, so that all ties are exact.
    """
    assert indices.dtype == torch.int64, f"indices are {indices.dtype}"
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    assert distances.dtype == wide, f"distances are {distances.dtype}"
    assert indices.shape == distances.shape == z.shape[:-1], "the result has another shape"
    if len(z) == 0:
        return
    low, high = int(indices.min()), int(indices.max())
    assert low >= 0, f"index {low}"
    assert high < len(codebook), f"index {high} of {len(codebook)} codes"
    usable = codebook.isfinite().all(dim=1)
    first = first_of_equals(codebook) if usable.all() else None
    step = max(1, _CHUNK // codebook.numel())
    for begin in range(0, len(z), step):
        part = slice(begin, begin + step)
        _check_rows(z[part], codebook, indices[part], distances[part], usable, first, exact, begin)


def _check_rows(
    z: Tensor,
    codebook: Tensor,
    indices: Tensor,
    distances: Tensor,
    usable: Tensor,
    first: Tensor | None,
    exact: bool,
    begin: int,
) -> None:
    def none(wrong: Tensor, what: str) -> None:
        if wrong.any():
            row = int(wrong.nonzero()[0])
            chosen = int(indices[row])
            detail = ""
            if usable.any():
                nearest = int(of_all[row].argmin())
                detail = (
                    f"; float64: code {nearest} at {of_all[row, nearest].item()!r}, "
                    f"the chosen one at {of_chosen[row].item()!r}"
                )
            raise AssertionError(
                f"{what}: row {begin + row}, code {chosen}, distance "
                f"{distances[row].item()!r}{detail}"
            )

    of_all = all_distances(z, codebook)
    chosen_codes = codebook[indices].double()
    of_chosen = (z.double() - chosen_codes).square().sum(dim=1)
    nan = z.isnan().any(dim=1)
    none(nan & (indices != 0), "a row with a NaN must get code 0")
    none(nan & ~distances.isnan(), "a row with a NaN must get a distance of NaN")
    if not usable.any():
        none(indices != 0, "where no code is finite, code 0 must be chosen")
        return
    rest = ~nan
    none(rest & ~usable[indices], "a code that is not finite was chosen")
    least = of_all.amin(dim=1)
    allowed = least * (1 + 2 * rounding(z.shape[1]))
    none(rest & ~(of_chosen <= allowed), "not the nearest code")
    none(rest & ~(distances >= 0), "a negative distance")
    expected = of_chosen.to(distances.dtype)
    last_digit = rounding(z.shape[1]) if z.dtype == torch.float64 else 2.0**-24
    slack = 1.01 * last_digit * of_chosen + torch.finfo(distances.dtype).smallest_normal * 2.0**-22
    near = ((distances.double() - of_chosen).abs() <= slack) | (distances == expected)
    none(rest & ~near, "not the distance of the chosen code")
    if first is not None:
        none(rest & (first[indices] != indices), "an equal code has a lower index")
    tied = of_all == of_chosen[:, None]
    if exact:
        none(rest & (tied.int().argmax(dim=1) != indices), "an exact tie has a lower index")
    infinite = rest & least.isinf()
    lowest_usable = int(usable.nonzero()[0])
    none(infinite & (indices != lowest_usable), "all are infinitely far: the lowest must win")


def segment_sums(src: Tensor, indices: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """float64 sums [count, D], the sums of the magnitudes [count, D], and the counts [count]."""
    kept = indices >= 0
    rows, places = src[kept].double(), indices[kept]
    zeros = torch.zeros(count, src.shape[-1], dtype=torch.float64)
    sums = zeros.index_add(0, places, rows)
    magnitudes = zeros.index_add(0, places, rows.abs())
    return sums, magnitudes, torch.bincount(places, minlength=count)
