"""Cosine similarity and inner product as Euclidean searches, so that one search serves them all."""

import torch
from torch import Tensor

from vqvae_fast.dtypes import distance_dtype
from vqvae_fast.formulas import directions, flat_indices

METRICS = ("euclidean", "cosine", "dot")
# Elements of the codes whose products are computed at a time: 8 MiB in float64.
_ELEMENTS = 1 << 20


def as_euclidean(z: Tensor, codebook: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Return vectors and codes for which the nearest code is the most similar one.

    Args:
        z: [..., D].
        codebook: [K, D] or [H, K, D].
        metric: "cosine" or "dot".

    Returns:
        Copies of both in float32 (float64 for float64 input), D wide for the cosine, D + 2 for the
        inner product.
    """
    if metric == "cosine":
        return directions(z), directions(codebook)
    dtype = distance_dtype(z.dtype)
    codes, radius = _in_a_unit_ball(codebook)
    return _near_a_sphere(z, radius).to(dtype), _on_a_sphere(codes, radius, dtype).to(dtype)


def dissimilarity(
    z: Tensor, codebook: Tensor, indices: Tensor, distances: Tensor, metric: str
) -> Tensor:
    """Compute 1 - cos(z, e), or -z.e, of every vector [..., D] and its code, or its k codes.

    ``indices`` and ``distances``, [...] or [..., k], are the search's results for
    :func:`as_euclidean`.
    """
    if metric == "cosine":  # |a - b|^2 = 2 - 2 a.b on the unit sphere
        return distances / 2
    codes, chosen = codebook.reshape(-1, codebook.shape[-1]), flat_indices(indices, codebook)

    def products(vectors: Tensor, places: Tensor) -> Tensor:
        return (vectors.double() * codes[places].double()).sum(dim=-1)

    several = indices.dim() == z.dim()
    if torch.compiler.is_compiling():  # the compiler's loop does not store the codes of all vectors
        found = products(z[..., None, :] if several else z, chosen)
    else:
        rows, per_row = z.reshape(-1, 1, z.shape[-1]), indices.shape[-1] if several else 1
        places = chosen.reshape(rows.shape[0], per_row)
        found = torch.empty_like(places, dtype=torch.float64)
        step = max(1, _ELEMENTS // (per_row * z.shape[-1]))
        for first in range(0, rows.shape[0], step):
            part = slice(first, first + step)
            found[part] = products(rows[part], places[part])
        found = found.view(indices.shape)
    return -found.to(distances.dtype)


def _in_a_unit_ball(codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Scales codebook [..., K, D] by a power of two to elements below 1; also finds its norm.

    Near the ends of the dtype's range, norms and the columns that _on_a_sphere adds would overflow
    or lose digits. The scaling rounds only elements that are negligible beside others.
    """
    usable = codebook.isfinite().all(dim=-1, keepdim=True)
    largest = torch.where(usable, codebook.abs(), 0).amax(dim=(-2, -1), keepdim=True)
    codes = _without_exponent(codebook, largest)
    norms = torch.linalg.vector_norm(torch.where(usable, codes, 0), dim=-1)
    return codes, norms.amax(dim=-1)


def _near_a_sphere(z: Tensor, radius: Tensor) -> Tensor:
    """Scales z [..., D] by a power of two to a norm just below the radius; adds two zero columns.

    If a vector's product with a code is about as large as both squares, the distance is as
    accurate as the product. The scale does not change which code wins, and rounds nothing.
    """
    z = _without_exponent(z, z.abs().amax(dim=-1, keepdim=True))
    norm = torch.linalg.vector_norm(z, dim=-1)
    radius = radius.view(radius.shape + (1,) * (norm.dim() - radius.dim()))
    exponent = torch.frexp(radius).exponent - torch.frexp(norm).exponent
    return torch.nn.functional.pad(torch.ldexp(z, exponent[..., None]), (0, 2))


def _without_exponent(x: Tensor, largest: Tensor) -> Tensor:
    """Returns x in float64, divided by the power of two that brings `largest` into [0.5, 1)."""
    exponent = torch.frexp(largest.double()).exponent
    half = exponent // 2  # for a subnormal, 2^1074 would overflow
    return torch.ldexp(torch.ldexp(x.double(), -half), half - exponent)


def _on_a_sphere(codes: Tensor, radius: Tensor, dtype: torch.dtype) -> Tensor:
    """Appends two columns to codes [..., K, D] that bring every code's norm to the radius.

    |z - e|^2 = |z|^2 + radius^2 - 2 z.e then falls as the product rises. One column in `dtype`
    would miss the radius by its rounding error; the second holds the remainder.
    """
    rest = radius[..., None] ** 2 - codes.square().sum(dim=-1)
    rest = rest.clamp(min=0)
    first = rest.sqrt().to(dtype)
    first = torch.nextafter(first, torch.zeros_like(first))  # its square must not pass the rest
    second = (rest - first.double().square()).clamp(min=0).sqrt()
    return torch.cat([codes, first.double()[..., None], second[..., None]], dim=-1)
