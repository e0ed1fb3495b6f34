"""The k nearest codes in plain PyTorch, measured in float64, on any device.

Memory is O(N k + K) and a chunk: N x K numbers are never stored.
"""

import torch
from torch import Tensor

from vqvae_fast.dtypes import distance_dtype

# Elements of the largest temporary: 4 Mi float64 numbers are 32 MiB.
_CHUNK_ELEMENTS = 1 << 22
# So many more codes than k are measured: the score of the last of them is that of no nearer code.
_MORE = 16
# At most so many rows and codes are measured at a time where scores are not accurate enough.
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
    chunk = max(1, _CHUNK_ELEMENTS // max(*codebook.shape, (k + _MORE) * z.shape[-1]))
    for first in range(0, len(rows), chunk):
        part = slice(first, first + chunk)
        indices[part], distances[part] = _nearest_in_chunk(rows[part], codebook, k)
    return indices.view(shape), distances.view(shape)


def _nearest_in_chunk(rows: Tensor, codebook: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """rows: [n, D], codebook: [K, D] -> indices [n, k], float64 distances [n, k].

    It measures the codes with the best scores. A row becomes sure if all other codes are farther
    than the k nearest of them, whatever rounding did; the other rows measure every code.
    """
    usable = codebook.isfinite().all(dim=1)
    if int(usable.sum()) <= k + _MORE:
        return _nearest_of_all(rows, codebook, k)
    z, codes = _in_rows(rows), torch.where(usable[:, None], codebook.double(), 0.0)

    # score = z.e - |e|^2/2 orders the codes as the distance does, |z|^2 - 2 score. Around the
    # codebook's centre the numbers are as small as the data allows, and so are rounding errors.
    centre = codes[usable].mean(dim=0)
    zc, ec = z - centre, codes - centre
    scores = torch.addmm(-0.5 * ec.square().sum(dim=1), zc, ec.T)
    best = scores.masked_fill_(~usable, -torch.inf).topk(k + _MORE, dim=1)

    places = best.indices.sort(dim=1).values
    measured = (z[:, None] - codes[places]).square_().sum(dim=2)
    # The sort is stable, so the lowest index stays first among equals.
    distances, order = measured.sort(dim=1, stable=True)
    indices, distances = places.gather(1, order)[:, :k], distances[:, :k]

    info, farthest = torch.finfo(torch.float64), distances[:, -1]
    reach = zc.norm(dim=1) + ec[usable].norm(dim=1).max()
    error = 4 * (z.shape[1] + 16) * (info.eps * (reach.square() + farthest) + info.tiny)
    others = zc.square().sum(dim=1) - 2 * best.values[:, -1]
    unsure = ~(farthest + error < others)  # a NaN compares false
    for part in unsure.nonzero()[:, 0].split(_ROWS):
        indices[part], distances[part] = _nearest_of_all(rows[part], codebook, k)
    return indices, distances


def _nearest_of_all(rows: Tensor, codebook: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Does the same by measuring every code."""
    z = _in_rows(rows)
    step = max(1, min(_CODES, _CHUNK_ELEMENTS // max(1, z.numel())))
    finite = codebook.isfinite().all(dim=1)
    indices = rows.new_empty((len(rows), 0), dtype=torch.int64)
    distances = z.new_empty((len(rows), 0))

    def with_codes(places: Tensor) -> tuple[Tensor, Tensor]:
        measured = (z[:, None] - codebook[places].double()).square_().sum(dim=2)
        of_all = torch.cat([indices, places.expand(measured.shape)], dim=1)
        return of_all, torch.cat([distances, measured], dim=1)

    for places in finite.nonzero()[:, 0].split(step):
        indices, distances = with_codes(places)
        distances, order = distances.sort(dim=1, stable=True)
        indices, distances = indices.gather(1, order)[:, :k], distances[:, :k]
    # Codes with a NaN or an infinity come last, by their index.
    for places in (~finite).nonzero()[: k - indices.shape[1], 0].split(step):
        indices, distances = with_codes(places)
    is_nan = z.isnan().any(dim=1)[:, None]
    places = torch.arange(k, device=rows.device)
    return torch.where(is_nan, places, indices), torch.where(is_nan, torch.nan, distances)


def _in_rows(rows: Tensor) -> Tensor:
    """Copies rows in float64, row after row.

    Differences take the layout of the rows. In another one, torch adds the squares of two codes in
    different orders, and copies of a code would not be equally far.
    """
    return rows.double().contiguous()
