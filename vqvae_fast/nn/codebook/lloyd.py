"""k-means as vector-quantize-pytorch starts a codebook with it, on the exact search."""

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from vqvae_fast import functional
from vqvae_fast.distributed import each_from_its_turn, summed
from vqvae_fast.nn.codebook.sampling import shuffled


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
    """Lloyd's algorithm from random samples; a code without samples stays where it is.

    Args:
        samples: [C, n, D], of each of C books.
        valid: bool [C, n], which samples count.
        num_codes: K. Where there are fewer samples, each is a code, and the others are copies.
        iterations: rounds.
        cosine: samples and codes are of unit length.
        synced: the samples of all processes count, and all get the same codes.

    Returns:
        codes [C, K, D], and how many samples chose each in the last round, [C, K].
    """
    pairs = zip(samples, valid, strict=True)
    codes = torch.stack([_seeds(book, counted, num_codes, synced) for book, counted in pairs])
    counts = codes.new_zeros(codes.shape[:-1])
    for _ in range(iterations):
        indices = functional.nearest_code(samples, codes).indices
        sums, counts = functional.code_statistics(samples, torch.where(valid, indices, -1), codes)
        if synced:
            sums, counts = summed(sums, counts)
        means = sums / counts.clamp(min=1)[..., None]
        if cosine:
            means = nn_functional.normalize(means, dim=-1)
        codes = torch.where((counts > 0)[..., None], means, codes)
    return codes, counts


def _seeds(samples: Tensor, valid: Tensor, num_codes: int, synced: bool) -> Tensor:
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
