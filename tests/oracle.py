"""What the package must compute, in plain PyTorch and float64. It imports nothing of the package.

The contract of a search: for every row, the distance of the chosen code exceeds the smallest
distance by no more than 1e-6 of it (1e-12 for float64 rows); exact duplicates and exact ties go to
the lowest index; a row with a NaN gets index 0 and distance NaN; a code with a NaN or an infinity
is never chosen unless every code is such, then it is code 0; distances are sum((z - e)^2), rounded
once and never negative.
"""

import torch
from torch import Tensor

# Elements of the largest temporary.
_CHUNK = 1 << 22


def all_distances(z: Tensor, codebook: Tensor) -> Tensor:
    """z [n, D], codebook [K, D] -> float64 [n, K], infinite for codes that are not finite.

    Unless every code is such: then the distances are what the arithmetic gives.
    """
    distances = (z.double()[:, None] - codebook.double()).square_().sum(dim=2)
    unusable = ~codebook.isfinite().all(dim=1)
    if not unusable.all():
        distances[:, unusable] = torch.inf
    return distances


def nearest(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """z [N, D], codebook [K, D] -> the lowest index of the smallest float64 distance, and it."""
    indices, distances = [], []
    for rows in z.split(max(1, _CHUNK // codebook.numel())):
        of_all = all_distances(rows, codebook)
        least = of_all.amin(dim=1)
        # argmax of a mask: the first of equals, which min() does not promise.
        indices.append((of_all == least[:, None]).int().argmax(dim=1))
        distances.append(least)
    return torch.cat(indices), torch.cat(distances)


def wrong_rows(indices: Tensor, z: Tensor, codebook: Tensor) -> int:
    """How many rows of `z` [N, D] got a code that is farther than another."""
    _, least = nearest(z, codebook)
    of_chosen = (z.double() - codebook.double()[indices]).square().sum(dim=1)
    return int((of_chosen > least * (1 + 1e-12)).sum())


def first_of_duplicates(codebook: Tensor) -> Tensor:
    """For each code the lowest index of a code equal to it, [K]; its own if it is not finite."""
    first = torch.arange(len(codebook))
    finite = codebook.isfinite().all(dim=1)
    if finite.any():
        places = first[finite]
        _, group = torch.unique(codebook[finite].double(), dim=0, return_inverse=True)
        lowest = torch.full_like(places, len(codebook)).scatter_reduce(0, group, places, "amin")
        first[finite] = lowest[group]
    return first


def rounding(dim: int) -> float:
    """Relative error of a float64 sum of `dim` squares of differences."""
    return (dim + 4) * 2.0**-53


def check(
    result: tuple[Tensor, Tensor],
    z: Tensor,
    codebook: Tensor,
    *,
    exact_ties: bool = False,
    excess: float | None = None,
) -> None:
    """Raise an AssertionError where a search breaks the contract.

    Args:
        result: the indices and the distances, both z.shape[:-1].
        z: [..., D], or [H, ..., D] with separate books.
        codebook: [K, D], or [H, K, D].
        exact_ties: float64 distances of these data have no rounding, so that all ties are exact.
        excess: by how much of the smallest distance that of the chosen code may exceed it; the
            contract's number unless given.
    """
    indices, distances = result
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    assert indices.dtype == torch.int64, f"indices are {indices.dtype}"
    assert distances.dtype == wide, f"distances are {distances.dtype}"
    assert indices.shape == distances.shape == z.shape[:-1], "the result has another shape"
    if codebook.dim() == 3:
        for h, book in enumerate(codebook):
            check((indices[h], distances[h]), z[h], book, exact_ties=exact_ties, excess=excess)
        return
    z, indices, distances = z.reshape(-1, z.shape[-1]), indices.flatten(), distances.flatten()
    if len(z) == 0:
        return
    low, high = int(indices.min()), int(indices.max())
    assert low >= 0, f"index {low}"
    assert high < len(codebook), f"index {high} of {len(codebook)} codes"
    if excess is None:
        excess = 1e-12 if wide == torch.float64 else 1e-6
    first = first_of_duplicates(codebook)
    step = max(1, _CHUNK // codebook.numel())
    for begin in range(0, len(z), step):
        part = slice(begin, begin + step)
        _check_rows(
            z[part], codebook, indices[part], distances[part], first, exact_ties, excess, begin
        )


def _check_rows(
    z: Tensor,
    codebook: Tensor,
    indices: Tensor,
    distances: Tensor,
    first: Tensor,
    exact_ties: bool,
    excess: float,
    begin: int,
) -> None:
    """The contract for rows of which `begin` stand before them."""

    def none(wrong: Tensor, what: str) -> None:
        if wrong.any():
            row = int(wrong.nonzero()[0])
            nearest = int(of_all[row].argmin())
            raise AssertionError(
                f"{what}: row {begin + row}, code {int(indices[row])}, distance "
                f"{distances[row].item()!r}; float64: code {nearest} at "
                f"{of_all[row, nearest].item()!r}, the chosen one at {of_chosen[row].item()!r}"
            )

    of_all = all_distances(z, codebook)
    of_chosen = (z.double() - codebook[indices].double()).square().sum(dim=1)
    usable = codebook.isfinite().all(dim=1)
    nan = z.isnan().any(dim=1)
    none(nan & (indices != 0), "a row with a NaN must get code 0")
    none(nan & ~distances.isnan(), "a row with a NaN must get a distance of NaN")
    if not usable.any():
        none(indices != 0, "where no code is finite, code 0 must be chosen")
        return
    rest = ~nan
    none(rest & ~usable[indices], "a code that is not finite was chosen")
    least = of_all.amin(dim=1)
    allowed = least * (1 + max(excess, 2 * rounding(z.shape[1])))
    none(rest & ~(of_chosen <= allowed), "not the nearest code")
    none(rest & ~(distances >= 0), "a negative distance")
    expected = of_chosen.to(distances.dtype)
    last_digit = rounding(z.shape[1]) if z.dtype == torch.float64 else 2.0**-24
    slack = 1.01 * last_digit * of_chosen + torch.finfo(distances.dtype).smallest_normal * 2.0**-22
    # An infinite distance has an infinite slack, which would let every number pass.
    close = ((distances.double() - of_chosen).abs() <= slack) & of_chosen.isfinite()
    near = close | (distances == expected)
    none(rest & ~near, "not the distance of the chosen code")
    none(rest & (first[indices] != indices), "an equal code has a lower index")
    if exact_ties:
        lowest = (of_all == least[:, None]).int().argmax(dim=1)
        none(rest & (lowest != indices), "an exact tie has a lower index")
    infinite = rest & least.isinf()
    lowest_usable = int(usable.nonzero()[0])
    none(infinite & (indices != lowest_usable), "all are infinitely far: the lowest must win")


def rows_of_books(indices: Tensor, codebook: Tensor) -> Tensor:
    """indices of books [H, ...] as rows of the books laid end to end; negative ones stay so."""
    if codebook.dim() == 2:
        return indices
    books = [torch.where(i < 0, i, i + h * codebook.shape[1]) for h, i in enumerate(indices)]
    return torch.stack(books)


def segment_sums(src: Tensor, indices: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """float64 sums [count, D], the sums of the magnitudes [count, D], and the counts [count]."""
    kept = indices >= 0
    rows, places = src[kept].double(), indices[kept]
    zeros = torch.zeros(count, src.shape[-1], dtype=torch.float64)
    sums = zeros.index_add(0, places, rows)
    magnitudes = zeros.index_add(0, places, rows.abs())
    return sums, magnitudes, torch.bincount(places, minlength=count)


def quantize_gradients(
    grad_quantized: Tensor,
    grad_loss: Tensor,
    z: Tensor,
    codebook: Tensor,
    indices: Tensor,
    commitment_weight: float,
    codebook_weight: float,
) -> tuple[Tensor, Tensor]:
    """The layer's gradients to z and to the codes, by autograd, with the codes that were chosen."""
    z = z.double().requires_grad_()
    codebook = codebook.double().requires_grad_()
    q = codebook.flatten(0, -2)[rows_of_books(indices, codebook)]
    commitment = (z - q.detach()).square().mean()
    loss = commitment_weight * commitment + codebook_weight * (z.detach() - q).square().mean()
    quantized = z + (q - z).detach()
    scalar = (quantized * grad_quantized.double()).sum() + grad_loss.double() * loss
    return torch.autograd.grad(scalar, (z, codebook))


def rotated(z: Tensor, q: Tensor) -> Tensor:
    """q as the rotation trick reaches it from z (arXiv 2410.06424): a rotation and a stretch.

    Rotation and stretch count as constant. Lengths below 1e-6 count as 1e-6.
    """

    def length(x: Tensor) -> Tensor:
        return x.norm(dim=-1, keepdim=True).clamp(min=1e-6)

    u, v = (z / length(z)).detach(), (q / length(q)).detach()
    w = (u + v) / length(u + v)
    stretch = q.norm(dim=-1, keepdim=True).detach() / length(z).detach()
    reflected = z - 2 * (z * w).sum(dim=-1, keepdim=True) * w
    return stretch * (reflected + 2 * (z * u).sum(dim=-1, keepdim=True) * v)


def residual_gradient(
    grad_quantized: Tensor,
    grad_losses: Tensor,
    z: Tensor,
    books: list[Tensor],
    indices: Tensor,
    rotates: bool,
) -> Tensor:
    """The gradient to z through the stages of residual quantization, by autograd."""
    z = z.double().requires_grad_()
    scalar = z.new_zeros(())
    residual = z
    for stage, book in enumerate(books):
        codes = book.double()[indices[..., stage]]
        passed = rotated(residual, codes) if rotates else residual + (codes - residual).detach()
        scalar = scalar + (passed * grad_quantized.double()).sum()
        scalar = scalar + grad_losses[stage].double() * (residual - codes).square().mean()
        # What came before counts as constant: the residual's gradient to z is the identity.
        residual = z + (residual - codes - z).detach()
    return torch.autograd.grad(scalar, z)[0]


def moving_averages(
    average: Tensor,
    cluster_size: Tensor,
    src: Tensor,
    indices: Tensor,
    decay: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The averages [K, D] and [K] behind a batch, and the codes (arXiv 1711.00937, A.1).

    With books each has one more dimension in front.
    """
    if average.dim() == 3:
        books = zip(average, cluster_size, src, indices, strict=True)
        found = [moving_averages(*book, decay, eps) for book in books]
        moved, sizes, codes = (torch.stack(part) for part in zip(*found, strict=True))
        return moved, sizes, codes
    sums, _, counts = segment_sums(src, indices, len(cluster_size))
    moved = decay * average.double() + (1 - decay) * sums
    sizes = decay * cluster_size.double() + (1 - decay) * counts
    smoothed = (sizes + eps) * sizes.sum() / (sizes.sum() + len(sizes) * eps)
    return moved, sizes, moved / smoothed[:, None]
