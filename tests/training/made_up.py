"""A made-up quantizer: random codes, all of which one number stretches. Training learns the number.

The tests put this file into vqvae_fast/recipes, as CONTRIBUTING.md says; nothing else is edited.
"""

import torch
from torch import Tensor, nn

import vqvae_fast
from vqvae_fast.nn import LazyOneHot, code_counts, perplexity
from vqvae_fast.nn.vqvae.quantizer import QuantizerOutput
from vqvae_fast.recipes import Plan, Recipe, Sizes


class StretchedCodes(nn.Module):
    """Codes ``stretch * directions``, of which the directions are fixed."""

    directions: Tensor

    def __init__(self, n_e: int, e_dim: int, beta: float = 0.25, *, stretch: float = 1.0):
        super().__init__()
        self.n_e, self.e_dim, self.beta = n_e, e_dim, beta
        self.register_buffer("directions", torch.randn(n_e, e_dim))
        self.stretch = nn.Parameter(torch.full((), stretch))

    @property
    def codebook(self) -> Tensor:
        """The codes, [n_e, e_dim]."""
        return self.stretch * self.directions

    def forward(self, z: Tensor) -> QuantizerOutput:
        """Quantize a feature map [B, e_dim, H, W]."""
        quantized = vqvae_fast.quantize(
            z.float(), self.codebook, commitment_weight=self.beta, channel_first=True
        )
        flat = quantized.indices.reshape(-1)
        return (
            quantized.loss,
            quantized.quantized.to(z.dtype),
            perplexity(code_counts(flat, self.n_e)),
            LazyOneHot(flat, self.n_e),
            flat[:, None],
        )

    def encode(self, z: Tensor) -> Tensor:
        """Indices [B, H, W] of a feature map [B, e_dim, H, W]."""
        return vqvae_fast.nearest_code(z.float().movedim(1, -1), self.codebook).indices

    def decode(self, indices: Tensor) -> Tensor:
        """Feature map [B, e_dim, H, W] of indices [B, H, W]."""
        return self.codebook[indices].movedim(-1, 1)


def _plan(sizes: Sizes) -> Plan:
    return Plan({"stretch": 0.5}, dim=6, cooling=0.5)


RECIPE = Recipe("stretches random codes", StretchedCodes, _plan)
