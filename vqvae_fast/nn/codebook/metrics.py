"""How much of a codebook is in use. No one-hot is built and nothing waits for the device."""

from typing import NamedTuple

import torch
from torch import Tensor


class CodebookMetrics(NamedTuple):
    """Result of :func:`codebook_metrics`; 0-d tensors."""

    usage: Tensor
    perplexity: Tensor
    dead_codes: Tensor


def codebook_metrics(indices: Tensor, num_codes: int) -> CodebookMetrics:
    """How well indices spread over a codebook; cheap enough for every step.

    Args:
        indices: int64, any shape, each in [0, ``num_codes``), or -1 for a vector to leave out. Of
            residual quantizers, one stage's: ``indices[..., stage]``.
        num_codes: K, the number of codes.

    Returns:
        :func:`usage`, :func:`perplexity`, and the number of codes that were not chosen, int64.
    """
    counts = code_counts(indices, num_codes)
    return CodebookMetrics(usage(counts), perplexity(counts), (counts == 0).sum())


def code_counts(indices: Tensor, num_codes: int) -> Tensor:
    """How often every code was chosen.

    Args:
        indices: int64, any shape, each in [0, ``num_codes``), or -1 for a vector to leave out.
        num_codes: K, the number of codes.

    Returns:
        [K] int64: exact for any number of vectors, and the same in whatever order they are added.
    """
    # Python's remainder sends -1 to a bin of its own behind the last code.
    bins = indices.reshape(-1).remainder(num_codes + 1)
    return bins.new_zeros(num_codes + 1).scatter_add_(0, bins, torch.ones_like(bins))[:num_codes]


def usage(counts: Tensor) -> Tensor:
    """Share of the codes that were chosen at least once.

    Args:
        counts: [K], how often each code was chosen: of a batch from :func:`code_counts`, or of
            many batches added up.

    Returns:
        0-d float32 in [0, 1].
    """
    return (counts > 0).float().mean()


def perplexity(counts: Tensor) -> Tensor:
    """Effective number of codes: ``exp(-sum p log(p + 1e-10))`` with p the share of every code.

    1 where a single code serves all vectors, K where all codes serve equally many. The 1e-10 is
    the reference VQ-VAE's, so that the numbers compare.

    Args:
        counts: [K], as for :func:`usage`.

    Returns:
        0-d float32 (float64 for float64 counts); 1 where nothing was counted.
    """
    counts = counts if counts.dtype == torch.float64 else counts.float()
    share = counts / counts.sum().clamp(min=1)
    return torch.exp(-(share * torch.log(share + 1e-10)).sum())
