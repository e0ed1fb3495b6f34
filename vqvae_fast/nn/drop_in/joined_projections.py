"""The projections of quantizers side by side, joined so that a call needs two products."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqvae_fast.nn.drop_in.composed_stages import columns_filled


class JoinedProjections(NamedTuple):
    """The projections of G quantizers that get the same vectors and whose results are added.

    Attributes:
        entry: [C, G * D], up to a multiple of 16 columns: leads to what the quantizers see.
        entry_bias: [as many].
        exit: [G * D, C], up to a multiple of 16 columns: leads from what they give to the sum.
        exit_bias: [as many].
        width: G * D.
        channels: C.
    """

    entry: Tensor
    entry_bias: Tensor
    exit: Tensor
    exit_bias: Tensor
    width: int
    channels: int

    @property
    def nbytes(self) -> int:
        """The memory of all."""
        return sum(part.nbytes for part in self[:4])

    def enter(self, vectors: Tensor) -> Tensor:
        """Vectors [..., C] -> what the quantizers see, side by side [..., G * D]."""
        rows: Tensor = torch.ops.vqvae_fast.project(
            vectors, self.entry, self.entry_bias, self.width
        )
        return rows

    def leave(self, quantized: Tensor) -> Tensor:
        """What the quantizers give, side by side [..., G * D] -> the sum [..., C]."""
        vectors: Tensor = torch.ops.vqvae_fast.project(
            quantized, self.exit, self.exit_bias, self.channels
        )
        return vectors


def join(into: Sequence[nn.Conv1d], out: Sequence[nn.Conv1d]) -> JoinedProjections:
    """Join 1x1 convolutions from C channels to D each, and those that lead back."""
    entry = torch.cat([projection.weight[..., 0] for projection in into]).t()
    exit = torch.cat([projection.weight[..., 0] for projection in out], dim=1).t()
    entry_bias = torch.cat([_bias(projection) for projection in into])
    exit_bias = torch.stack([_bias(projection).double() for projection in out]).sum(dim=0)
    return JoinedProjections(
        entry=columns_filled(entry),
        entry_bias=columns_filled(entry_bias),
        exit=columns_filled(exit),
        exit_bias=columns_filled(exit_bias.float()),
        width=len(entry_bias),
        channels=len(exit_bias),
    )


def _bias(projection: nn.Conv1d) -> Tensor:
    bias = projection.bias
    return projection.weight.new_zeros(projection.out_channels) if bias is None else bias
