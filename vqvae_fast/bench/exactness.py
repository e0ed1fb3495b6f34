"""Checks in float64, for every row, whether an answer is the nearest code."""

from typing import NamedTuple

import torch
from torch import Tensor

# The contract allows the chosen code's distance to exceed the smallest by this share of it.
TOLERANCE = {torch.float64: 1e-12}
DEFAULT_TOLERANCE = 1e-6
_CHUNK_ELEMENTS = 1 << 23


class Smallest(NamedTuple):
    """The float64 distances to the nearest codes, [N], and the tolerance for the inputs' dtype."""

    distances: Tensor
    tolerance: float


def smallest_distances(z: Tensor, codebook: Tensor) -> Smallest:
    """Compute the true minima: candidates by a float64 product, then sum((z - e)^2) of the best.

    This function is independent of the package's own reference. The rounding error of the product
    is about 1e-16 of ``|z|^2 + |e|^2``. It matters only if nine codes lie within it, because the
    eight best candidates are measured directly.
    """
    codes = codebook.double()
    half_norms = 0.5 * codes.square().sum(dim=1)
    candidates = min(8, len(codes))
    minima = []
    for rows in z.double().split(max(1, _CHUNK_ELEMENTS // len(codes))):
        scores = torch.addmm(half_norms, rows, codes.T, alpha=-1.0)
        best = scores.topk(candidates, dim=1, largest=False, sorted=False).indices
        minima.append((rows[:, None] - codes[best]).square().sum(dim=2).amin(dim=1))
    return Smallest(torch.cat(minima), TOLERANCE.get(z.dtype, DEFAULT_TOLERANCE))


def violating_share(z: Tensor, codebook: Tensor, indices: Tensor, smallest: Smallest) -> float:
    """Return the share of rows, 0 to 1, whose chosen code is farther than the contract allows.

    Raises:
        ValueError: indices are not int64 [N] within the codebook, so they are no answer.
    """
    if indices.dtype != torch.int64 or indices.shape != z.shape[:1]:
        raise ValueError(
            f"indices must be int64 [N={len(z)}], got {indices.dtype} {list(indices.shape)}"
        )
    if len(z) and not 0 <= int(indices.min()) <= int(indices.max()) < len(codebook):
        raise ValueError(f"indices must be from 0 to K - 1 = {len(codebook) - 1}")
    chosen = (z.double() - codebook.double()[indices]).square().sum(dim=1)
    allowed = smallest.distances * (1.0 + smallest.tolerance)
    return float((chosen > allowed).double().mean()) if len(z) else 0.0


def violating_share_of_top(z: Tensor, codebook: Tensor, indices: Tensor) -> float:
    """Return the share of the answers [N, k] that are farther than the contract allows.

    The j-th code of a row may be farther than the j-th smallest float64 distance by the tolerance.
    All distances are measured as sum((z - e)^2), without a product.

    Raises:
        ValueError: indices are not int64 [N, k] within the codebook, all different in each row.
    """
    if indices.dtype != torch.int64 or indices.dim() != 2 or len(indices) != len(z):
        raise ValueError(
            f"indices must be int64 [N={len(z)}, k], got {indices.dtype} {list(indices.shape)}"
        )
    ordered = indices.sort(dim=1).values
    if not ((ordered >= 0) & (ordered < len(codebook))).all() or (ordered.diff() == 0).any():
        raise ValueError(f"indices of a row must be different ones from 0 to {len(codebook) - 1}")
    tolerance, codes, wrong = TOLERANCE.get(z.dtype, DEFAULT_TOLERANCE), codebook.double(), 0
    for row, chosen in zip(z.double(), indices, strict=True):
        distances = (row - codes).square_().sum(dim=1)
        smallest = distances.topk(indices.shape[1], largest=False).values
        wrong += int((distances[chosen] > smallest * (1 + tolerance)).sum())
    return wrong / max(indices.numel(), 1)


def violating_stages(z: Tensor, codebooks: Tensor, indices: Tensor) -> float:
    """Return the worst stage's :func:`violating_share`.

    z: [N, D], codebooks: [Q, K, D], indices: [N, Q]. Each stage is judged by the residual that the
    answer's own earlier stages have left.

    Raises:
        ValueError: indices are not int64 [N, Q] within the codebooks, so they are no answer.
    """
    wanted = (len(z), len(codebooks))
    if indices.dtype != torch.int64 or indices.shape != wanted:
        raise ValueError(
            f"indices must be int64 [N={wanted[0]}, Q={wanted[1]}], "
            f"got {indices.dtype} {list(indices.shape)}"
        )
    residual, worst = z, 0.0
    for codebook, choice in zip(codebooks, indices.unbind(1), strict=True):
        smallest = smallest_distances(residual, codebook)
        worst = max(worst, violating_share(residual, codebook, choice, smallest))
        residual = residual - codebook[choice]
    return worst


def wrong_sums(sums: Tensor, counts: Tensor, src: Tensor, indices: Tensor) -> float:
    """Return the share of wrong sums [K, D] of src [N, D] by index, or of wrong counts.

    A float64 sum that is rounded once is off by half a unit in its last place. The error is
    compared with the sum of the magnitudes, which cancellation does not make small.
    """
    wanted = src.new_zeros(sums.shape, dtype=torch.float64)
    magnitude = wanted.clone().index_add_(0, indices, src.double().abs())
    wanted.index_add_(0, indices, src.double())
    wrong = (sums.double() - wanted).abs() > 2.0**-23 * magnitude
    counted = torch.bincount(indices, minlength=len(sums))
    return max(float(wrong.double().mean()), float((counts != counted).double().mean()))
