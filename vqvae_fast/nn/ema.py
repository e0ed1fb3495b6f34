"""Codebook statistics that are kept as exponential moving averages."""

import torch
from torch import Tensor

from vqvae_fast.nn.metrics import code_counts
from vqvae_fast.nn.wide_buffers import WideBuffers


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

    @torch.no_grad()
    def update(self, z: Tensor, indices: Tensor, codebook: Tensor) -> None:
        """Average in one batch: z [..., D], indices z.shape[:-1] (-1: left out)."""
        counts = code_counts(indices, len(codebook))
        self.cluster_size.lerp_(counts.to(self.cluster_size.dtype), 1 - self.decay)

    @torch.no_grad()
    def reset(self, mask: Tensor, codes: Tensor, size: Tensor | float) -> None:
        """Start the masked codes anew.

        Args:
            mask: bool [K].
            codes: [K, D], the codes' new values; rows outside the mask are not read.
            size: their new cluster size, a number or [K].
        """
        self.cluster_size.copy_(torch.where(mask, size, self.cluster_size))


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

    @torch.no_grad()
    def update(self, z: Tensor, indices: Tensor, codebook: Tensor) -> None:
        """Average in one batch and write the new codes into ``codebook`` [K, D]."""
        torch.ops.vqvae_fast.moving_average_(
            self.embed_avg,
            self.cluster_size,
            codebook.detach(),
            z.detach(),
            indices,
            self.decay,
            self.eps,
        )

    @torch.no_grad()
    def reset(self, mask: Tensor, codes: Tensor, size: Tensor | float) -> None:
        """Start the masked codes anew; the next :meth:`update` finds them where they were put."""
        super().reset(mask, codes, size)
        sums = codes.to(self.embed_avg.dtype) * self.cluster_size[:, None]
        self.embed_avg.copy_(torch.where(mask[:, None], sums, self.embed_avg))
