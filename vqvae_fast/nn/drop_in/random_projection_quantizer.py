"""vector-quantize-pytorch's RandomProjectionQuantizer on the exact search."""

from typing import Any

import torch
from torch import Tensor, nn

from vqvae_fast.nn.drop_in.vector_quantize import VectorQuantize
from vqvae_fast.nn.steps.freezable import Freezable


class RandomProjectionQuantizer(Freezable):
    """Labels of speech frames by random codes of a random projection; nothing is learned.

    Chiu et al., BEST-RQ, arXiv 2202.01855, section 3.1.

    Args:
        dim: D, of the vectors.
        codebook_size: K, the number of codes.
        codebook_dim: d, of a projection.
        num_codebooks: C, projections with a book each.
        norm: give every vector mean 0 and variance 1 first.
        arguments: the others of :class:`VectorQuantize`.
    """

    rand_projs: Tensor

    def __init__(
        self,
        *,
        dim: int,
        codebook_size: int,
        codebook_dim: int,
        num_codebooks: int = 1,
        norm: bool = True,
        **arguments: Any,
    ):
        super().__init__()
        self.num_codebooks = num_codebooks
        projections = torch.empty(num_codebooks, dim, codebook_dim)
        nn.init.xavier_normal_(projections)
        self.register_buffer("rand_projs", projections)
        self.norm = nn.LayerNorm(dim, elementwise_affine=False) if norm else nn.Identity()
        self.vq = VectorQuantize(
            dim=codebook_dim * num_codebooks,
            heads=num_codebooks,
            codebook_size=codebook_size,
            use_cosine_sim=True,
            separate_codebook_per_head=True,
            **arguments,
        )

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        """Label vectors, or measure how well they fit the labels that they have.

        Args:
            x: [B, N, D].
            indices: int64, labels; -1 is left out.

        Returns:
            int64 [B, N], or [B, N, C]; with ``indices`` their cross-entropy, 0-d.
        """
        if x.dim() != 3 or x.shape[-1] != self.rand_projs.shape[1]:
            raise ValueError(f"x must be [B, N, D={self.rand_projs.shape[1]}], got {list(x.shape)}")
        projected = torch.einsum("bnd,hde->bnhe", self.norm(x), self.rand_projs).flatten(2)
        self.vq.eval()
        out = self.vq(projected, indices=indices)
        labels_or_loss: Tensor = out[1]
        return labels_or_loss
