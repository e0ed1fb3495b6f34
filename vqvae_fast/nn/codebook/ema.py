"""Codebook statistics that are kept as exponential moving averages."""

import torch
from torch import Tensor

from vqvae_fast.nn.codebook.averages import Averages
from vqvae_fast.nn.codebook.wide_buffers import WideBuffers


class CodeUsage(WideBuffers):
    """Moving average of how many vectors of a batch choose each code.

    Args:
        num_codes: K, the number of codes.
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
        averages = self.averages
        batch = averages.batch(z, indices)
        averages.average_in(batch.of_all() if synced else batch, self.decay)

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
        averages = self.averages
        if synced:
            super().update(z, indices, codebook, synced=True)
            averages.write_means(codebook.detach(), averages.smoothed(self.eps))
        else:
            averages.move_on(z, indices, codebook, self.decay, self.eps)
