"""Codebook statistics that are kept as exponential moving averages."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from vqvae_fast.backends.reference import ops as reference
from vqvae_fast.distributed import summed, summed_segments
from vqvae_fast.nn.codebook.metrics import code_counts
from vqvae_fast.nn.codebook.wide_buffers import WideBuffers


class Averages(NamedTuple):
    """The moving averages of K codes, or of those that this process has of a divided codebook.

    Attributes:
        cluster_size: [K], how many vectors of a batch choose each code.
        embed_avg: [K, D], their sums, where the codes are averages.
    """

    cluster_size: Tensor
    embed_avg: Tensor | None

    def average_in(self, counts: Tensor, decay: float) -> None:
        """Average in how often each code was chosen, [K]."""
        self.cluster_size.lerp_(counts.to(self.cluster_size.dtype), 1 - decay)

    def reset(self, which: Tensor, codes: Tensor, size: Tensor | float) -> None:
        """As :meth:`CodeUsage.reset`: averages of codes that have always been where they are."""
        put(self.cluster_size, which, size)
        if self.embed_avg is not None:
            mask = which.dtype == torch.bool
            sizes = self.cluster_size if mask else self.cluster_size[which]
            put(self.embed_avg, which, codes.to(self.embed_avg.dtype) * sizes[:, None])


class CodeUsage(WideBuffers):
    """Moving average of how many vectors of a batch choose each code.

    Args:
        num_codes: K.
        decay: weight of the past, 0 <= decay < 1.

    Buffers:
        cluster_size: [K], vectors per batch; 1 at the start.
    """

    cluster_size: Tensor

    def __init__(self, num_codes: int, decay: float):
        super().__init__()
        self.decay = decay
        self.register_buffer("cluster_size", torch.ones(num_codes))

    @property
    def averages(self) -> Averages:
        """The buffers."""
        return Averages(self.cluster_size, None)

    @torch.no_grad()
    def update(self, z: Tensor, indices: Tensor, codebook: Tensor, *, synced: bool = False) -> None:
        """Average in one batch: z [..., D], indices z.shape[:-1] (-1: left out).

        ``synced``: the batches of all processes count as one.
        """
        counts = code_counts(indices, len(codebook))
        if synced:
            (counts,) = summed(counts)
        self.averages.average_in(counts, self.decay)

    @torch.no_grad()
    def reset(self, which: Tensor, codes: Tensor, size: Tensor | float) -> None:
        """Start some codes anew: the next :meth:`update` finds them where they were put.

        Args:
            which: bool [K], a mask; or int64 [n], distinct codes.
            codes: [K, D], the codes' new values, of which those outside the mask are not read; or
                [n, D].
            size: their new cluster size, a number or a tensor like ``which``.
        """
        self.averages.reset(which, codes, size)


class CodeMovingAverage(CodeUsage):
    """A codebook that is the moving average of the vectors that choose its codes.

    Van den Oord et al., arXiv 1711.00937, appendix A.1: with n_i the number and s_i the sum of a
    batch's vectors nearest to code i,

        N_i <- decay * N_i + (1 - decay) * n_i
        m_i <- decay * m_i + (1 - decay) * s_i
        e_i  = m_i / N_i

    where N_i is first Laplace-smoothed to ``(N_i + eps) / (sum N + K eps) * sum N``, so that a
    code without vectors does not divide by nothing.

    Args:
        codebook: [K, D], the codes at the start.
        decay: weight of the past, 0 <= decay < 1.
        eps: of the smoothing, in vectors per batch.

    Buffers:
        cluster_size: [K], N_i; 1 at the start.
        embed_avg: [K, D], m_i; the codes themselves at the start, so that e_i does not jump.
    """

    embed_avg: Tensor

    def __init__(self, codebook: Tensor, decay: float, eps: float):
        super().__init__(codebook.shape[0], decay)
        self.eps = eps
        self.register_buffer("embed_avg", codebook.detach().clone())

    @property
    def averages(self) -> Averages:
        """The buffers."""
        return Averages(self.cluster_size, self.embed_avg)

    @torch.no_grad()
    def update(self, z: Tensor, indices: Tensor, codebook: Tensor, *, synced: bool = False) -> None:
        """Average in one batch and write the new codes into ``codebook`` [K, D]."""
        move_on: Callable[..., None] = torch.ops.vqvae_fast.moving_average_
        if synced:
            move_on = partial(reference.moving_average_, segment_sum=summed_segments)
        move_on(
            self.embed_avg,
            self.cluster_size,
            codebook.detach(),
            z.detach(),
            indices,
            self.decay,
            self.eps,
        )


def put(into: Tensor, which: Tensor, values: Tensor | float) -> None:
    """Write rows of [K, ...]: those of a mask, bool [K], or of places, int64 [n].

    ``values`` are then [K, ...] or [n, ...]. A mask does not wait for the device.
    """
    if which.dtype == torch.bool:
        which = which.view(-1, *[1] * (into.dim() - 1))
        into.copy_(torch.where(which, values, into))
    else:
        into[which] = values
