"""k-means on the exact search: from samples that lie far apart, and from random ones."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from vqvae_fast import functional
from vqvae_fast.distributed import each_from_its_turn, summed
from vqvae_fast.nn.codebook.sampling import shuffled


class KMeans(NamedTuple):
    """Result of :func:`kmeans`."""

    codes: Tensor
    counts: Tensor


@torch.no_grad()
def kmeans(samples: Tensor, num_codes: int, iterations: int = 10) -> KMeans:
    """Lloyd's algorithm from samples that lie far apart.

    The first codes are samples drawn with probability proportional to their squared distance from
    the codes drawn before, as in k-means++ (Arthur and Vassilvitskii, 2007), but as many at a time
    as there are already: the whole start costs one search, not K. A code that loses all its
    samples is drawn anew in the same way. Random draws come from torch's default generator of the
    samples' device.

    Args:
        samples: [n, D], n >= 1, finite.
        num_codes: K; it may exceed n: every sample is then a code, and the others are copies.
        iterations: number of rounds.

    Returns:
        ``(codes, counts)``: [K, D], and [K] the number of samples nearest to each code; float32
        (float64 for float64 samples).

    Raises:
        ValueError: there are no samples, or a number is not positive.
    """
    if samples.dim() != 2 or len(samples) == 0:
        raise ValueError(f"samples must be [n >= 1, D], got {list(samples.shape)}")
    if num_codes < 1 or iterations < 1:
        raise ValueError(
            f"num_codes and iterations must be at least 1, got {num_codes} and {iterations}"
        )
    samples = samples if samples.dtype == torch.float64 else samples.float()
    codes = _distant_seeds(samples, num_codes)
    for _ in range(iterations):
        indices, distances = functional.nearest_code(samples, codes)
        sums, counts = functional.segment_sum(samples, indices, num_codes)
        codes = _moved_to_means(codes, sums, counts)
        _fill_empty(codes, counts, samples, distances)
    indices, _ = functional.nearest_code(samples, codes)
    return KMeans(codes, functional.segment_sum(samples, indices, num_codes).counts)


def _distant_seeds(samples: Tensor, num_codes: int) -> Tensor:
    """Samples [n, D] to start from: [K, D]."""
    codes = samples[torch.randint(len(samples), (1,), device=samples.device)]
    distances = functional.nearest_code(samples, codes).distances
    while len(codes) < num_codes:
        new = samples[_draw(distances, min(len(codes), num_codes - len(codes)))]
        if len(new) == 0:  # every sample is a code already
            rest = (num_codes - len(codes),)
            new = samples[torch.randint(len(samples), rest, device=samples.device)]
        distances = torch.minimum(distances, functional.nearest_code(samples, new).distances)
        codes = torch.cat([codes, new])
    return codes


def _draw(weights: Tensor, number: int) -> Tensor:
    """Up to ``number`` distinct positions by weight [n]; never one whose weight is 0."""
    # The largest of weight / exponential is a draw by weight; the largest m are m distinct draws.
    keys = weights / torch.empty_like(weights).exponential_()
    return keys.topk(min(number, int((weights > 0).sum()))).indices


def _fill_empty(codes: Tensor, counts: Tensor, samples: Tensor, distances: Tensor) -> None:
    """Move codes without samples, in place, to distinct samples far from their codes."""
    empty = (counts == 0).nonzero()[:, 0]
    drawn = _draw(distances, len(empty))
    codes[empty[: len(drawn)]] = samples[drawn]


@torch.no_grad()
def lloyd(
    samples: Tensor,
    valid: Tensor,
    num_codes: int,
    iterations: int,
    *,
    cosine: bool = False,
    synced: bool = False,
) -> tuple[Tensor, Tensor]:
    """k-means as vector-quantize-pytorch starts a codebook with it.

    Lloyd's algorithm from random samples; a code without samples stays where it is.

    Args:
        samples: [C, n, D], of each of C books.
        valid: bool [C, n], which samples count.
        num_codes: K, the number of codes. Where there are fewer samples, each is a code, and the
            others are copies.
        iterations: rounds.
        cosine: samples and codes are of unit length.
        synced: the samples of all processes count, and all get the same codes.

    Returns:
        codes [C, K, D], and how many samples chose each in the last round, [C, K].
    """
    pairs = zip(samples, valid, strict=True)
    codes = torch.stack(
        [_random_seeds(book, counted, num_codes, synced) for book, counted in pairs]
    )
    counts = codes.new_zeros(codes.shape[:-1])
    for _ in range(iterations):
        indices = functional.nearest_code(samples, codes).indices
        sums, counts = functional.code_statistics(samples, torch.where(valid, indices, -1), codes)
        if synced:
            sums, counts = summed(sums, counts)
        codes = _moved_to_means(codes, sums, counts, unit_length=cosine)
    return codes, counts


def _random_seeds(samples: Tensor, valid: Tensor, num_codes: int, synced: bool) -> Tensor:
    """[n, D], bool [n] -> [K, D]."""
    turns = torch.arange(num_codes, device=samples.device)
    order, count = shuffled(valid)
    seeds = samples.new_zeros(num_codes, samples.shape[1])
    if len(samples):
        seeds = samples[order[turns % count.clamp(min=1)]]
    if not synced:
        return seeds
    seeds, found = each_from_its_turn(seeds, count > 0)
    present = (~found).int().argsort(stable=True)  # those that were proposed come first
    return seeds[present[turns % found.sum().clamp(min=1)]]


def _moved_to_means(
    codes: Tensor, sums: Tensor, counts: Tensor, *, unit_length: bool = False
) -> Tensor:
    """Codes [..., K, D] at the means of their samples; one without samples stays where it is."""
    means = sums / counts.clamp(min=1)[..., None]
    if unit_length:
        means = nn_functional.normalize(means, dim=-1)
    return torch.where((counts > 0)[..., None], means, codes)
