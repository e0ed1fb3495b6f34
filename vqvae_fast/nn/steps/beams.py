"""Beam search through the stages of a residual quantizer."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class Beams(NamedTuple):
    """The J best ways so far to quantize each of [B, N] vectors.

    Attributes:
        residual: [B, N, J, D], the input of the next stage.
        quantized: [B, N, J, D], the sum of the codes so far.
        scores: [B, N, J], the weighted negative errors of all stages.
        indices: [B, N, J, q], those of the q stages so far.
        losses: [B, N, J, q], those of the q stages so far.
        inputs: [B, N, J, q, D], the input of each stage.
    """

    residual: Tensor
    quantized: Tensor
    scores: Tensor
    indices: Tensor
    losses: Tensor
    inputs: Tensor

    @classmethod
    def start(cls, x: Tensor) -> "Beams":
        """Return one way for each vector of x [B, N, D], with nothing quantized."""
        batch, count, dim = x.shape
        return cls(
            x[:, :, None],
            torch.zeros_like(x)[:, :, None],
            x.new_zeros(batch, count, 1),
            torch.empty(batch, count, 1, 0, dtype=torch.int64, device=x.device),
            x.new_empty(batch, count, 1, 0),
            x.new_empty(batch, count, 1, 0, dim),
        )

    def extended(
        self,
        quantized: Tensor,
        taken: Tensor,
        indices: Tensor,
        losses: Tensor,
        weight: float,
    ) -> "Beams":
        """Extend every way by every code that a stage offers.

        Args:
            quantized: [B, N, J, k, D], the codes.
            taken: [B, N, J, k, D], the codes as they are subtracted from the residual.
            indices: [B, N, J, k].
            losses: [B, N, J, k].
            weight: the weight of the stage's losses in the score.
        """
        few = indices.shape[-1]

        def each(old: Tensor) -> Tensor:  # [B, N, J, ...] -> [B, N, J, k, ...]
            return old.unsqueeze(3).expand(*old.shape[:3], few, *old.shape[3:])

        inputs = torch.cat([self.inputs, self.residual.unsqueeze(3)], dim=3)
        wider = Beams(
            each(self.residual) - taken,
            each(self.quantized) + quantized,
            each(self.scores) - losses * weight,
            torch.cat([each(self.indices), indices[..., None]], dim=-1),
            torch.cat([each(self.losses), losses[..., None]], dim=-1),
            each(inputs),
        )
        return Beams(*(part.flatten(2, 3) for part in wider))

    def best(self, keep: int) -> "Beams":
        """Return the best ``keep`` ways."""
        if self.scores.shape[-1] <= keep:
            return self
        best = self.scores.topk(keep, dim=-1).indices
        return Beams(*(_selected(part, best) for part in self))

    def ended_before(self, runs: Tensor, ended: "Beams") -> "Beams":
        """Return these ways, or, if ``runs`` (0-d) is false, those that ended one stage before."""
        one_less = ended._replace(
            indices=pad(ended.indices, (0, 1), value=-1),
            losses=pad(ended.losses, (0, 1)),
            inputs=pad(ended.inputs, (0, 0, 0, 1)),
        )
        return Beams(*(torch.where(runs, *pair) for pair in zip(self, one_less, strict=True)))


def _selected(part: Tensor, best: Tensor) -> Tensor:
    """Selects from part [B, N, J, ...] the ways best [B, N, keep]; returns [B, N, keep, ...]."""
    where = best.view(best.shape + (1,) * (part.dim() - 3)).expand(*best.shape, *part.shape[3:])
    return part.gather(2, where)
