"""The k nearest codes in plain PyTorch, measured in float64, on any device.

Memory is O(N k) and a chunk: neither N x K numbers nor N x D float64 numbers are stored.
"""

import torch
from torch import Tensor

from vqvae_fast.dtypes import distance_dtype

# Elements of the largest temporary: 4 Mi float64 numbers are 32 MiB.
_CHUNK_ELEMENTS = 1 << 22
# At most so many rows and codes are taken at a time.
_ROWS, _CODES = 64, 4096


@torch.no_grad()
def nearest_codes(z: Tensor, codebook: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest codes of every row, the nearest first.

    Args:
        z: [..., D], or [H, ..., D] with separate books.
        codebook: [K, D], or [H, K, D].
        k: from 1 to K.

    Returns:
        indices, int64, and squared Euclidean distances, both [*z.shape[:-1], k].

    Raises:
        ValueError: there are not so many codes.
    """
    if not 1 <= k <= codebook.shape[-2]:
        raise ValueError(f"k must be from 1 to K={codebook.shape[-2]}, got {k}")
    if codebook.dim() == 3:
        books = [nearest_codes(*pair, k) for pair in zip(z, codebook, strict=True)]
        indices, distances = (torch.stack(part) for part in zip(*books, strict=True))
        return indices, distances
    rows, shape = z.reshape(-1, z.shape[-1]), (*z.shape[:-1], k)
    indices = rows.new_empty((len(rows), k), dtype=torch.int64)
    distances = rows.new_empty((len(rows), k), dtype=distance_dtype(z.dtype))
    for first in range(0, len(rows), _ROWS):
        part = slice(first, first + _ROWS)
        indices[part], distances[part] = _nearest_in_chunk(rows[part], codebook, k)
    return indices.view(shape), distances.view(shape)


def _nearest_in_chunk(rows: Tensor, codebook: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """rows: [n, D], codebook: [K, D] -> indices [n, k], float64 distances [n, k]."""
    z = rows.double()
    step = max(1, min(_CODES, _CHUNK_ELEMENTS // z.numel()))
    finite = codebook.isfinite().all(dim=1)
    indices = rows.new_empty((len(rows), 0), dtype=torch.int64)
    distances = z.new_empty((len(rows), 0))

    def with_codes(places: Tensor) -> tuple[Tensor, Tensor]:
        measured = (z[:, None] - codebook[places].double()).square_().sum(dim=2)
        of_all = torch.cat([indices, places.expand(measured.shape)], dim=1)
        return of_all, torch.cat([distances, measured], dim=1)

    for places in finite.nonzero()[:, 0].split(step):
        indices, distances = with_codes(places)
        # The sort is stable, so the lowest index stays first among equals.
        distances, order = distances.sort(dim=1, stable=True)
        indices, distances = indices.gather(1, order)[:, :k], distances[:, :k]
    # Codes with a NaN or an infinity come last, by their index.
    for places in (~finite).nonzero()[: k - indices.shape[1], 0].split(step):
        indices, distances = with_codes(places)
    is_nan = z.isnan().any(dim=1)[:, None]
    places = torch.arange(k, device=rows.device)
    return torch.where(is_nan, places, indices), torch.where(is_nan, torch.nan, distances)
