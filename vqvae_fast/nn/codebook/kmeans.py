"""k-means over the samples that a codebook starts from."""

from typing import NamedTuple

import torch
from torch import Tensor

from vqvae_fast import functional
from vqvae_fast.clustering import rounds
from vqvae_fast.clustering.rows import Rows
from vqvae_fast.clustering.seeding import plus_plus
from vqvae_fast.distributed import each_from_its_turn, summed
from vqvae_fast.nn.codebook.sampling import shuffled


class KMeansResult(NamedTuple):
    """Result of :func:`kmeans`."""

    codes: Tensor
    counts: Tensor


@torch.no_grad()
def kmeans(samples: Tensor, num_codes: int, iterations: int = 10) -> KMeansResult:
    """k-means as :class:`vqvae_fast.KMeans` computes it, for any number of samples.

    Random draws come from torch's default generator of the CPU.

    Args:
        samples: [n, D], n >= 1, finite.
        num_codes: K; it may exceed n: every sample is then a code, and the others are copies.
        iterations: number of rounds.

    Returns:
        ``(codes, counts)``: [K, D], and [K] the number of samples nearest to each code; float32
        (float64 for float64 samples).

    Raises:
        ValueError: there are no samples, a sample is not finite, or a number is not positive.
    """
    if samples.dim() != 2 or len(samples) == 0:
        raise ValueError(f"samples must be [n >= 1, D], got {list(samples.shape)}")
    if num_codes < 1 or iterations < 1:
        raise ValueError(
            f"num_codes and iterations must be at least 1, got {num_codes} and {iterations}"
        )
    data = Rows(samples, None, "euclidean", num_codes)
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    start = plus_plus(data, num_codes, generator)
    labels = torch.empty(len(samples), dtype=torch.int64, device=samples.device)
    codes = rounds.lloyd(data, start, max_iter=iterations, tol=0, labels=labels).codes
    counts = torch.bincount(labels, minlength=num_codes)
    return KMeansResult(codes, counts.to(codes.dtype))


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
        codes = rounds.moved_to_means(codes, sums, counts, unit_length=cosine)
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
