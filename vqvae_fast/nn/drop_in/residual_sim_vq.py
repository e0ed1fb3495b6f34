"""Residual SimVQ."""

from typing import Any

import torch
from torch import Tensor, nn

from vqvae_fast.agreement import require_same
from vqvae_fast.distributed import is_distributed
from vqvae_fast.nn.drop_in.sim_vq import SimVQ
from vqvae_fast.nn.steps.checks import check_counts, check_one_head
from vqvae_fast.nn.steps.fixed_attributes import FixedAttributes
from vqvae_fast.nn.steps.freezable import Freezable
from vqvae_fast.nn.steps.quantize_dropout import DropsStages, left_out_unless
from vqvae_fast.nn.steps.stages import padded_indices, sum_of_stages
from vqvae_fast.tracing import called_while_tracing


class ResidualSimVQ(Freezable, DropsStages, FixedAttributes):
    """vector-quantize-pytorch's ResidualSimVQ: each stage quantizes what the last has left.

    Zeghidour et al., SoundStream, arXiv 2107.03312, algorithm 1.

    Args:
        dim: D, the length of a vector.
        num_quantizers: Q, the number of stages.
        codebook_size: K, the number of codes.
        heads: 1.
        quantize_dropout: in training stop after a random stage, not before
            quantize_dropout_cutoff_index, the number of stages a multiple of
            quantize_dropout_multiple_of.
        channel_first: as for :class:`SimVQ`.
        rotation_trick: as for :class:`SimVQ`.
        arguments: the others of :class:`SimVQ`.

    Raises:
        ValueError: a number is out of range.
    """

    FIXED = frozenset(("num_quantizers", "channel_first"))

    def __init__(
        self,
        *,
        dim: int,
        num_quantizers: int,
        codebook_size: int,
        heads: int = 1,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        channel_first: bool = False,
        rotation_trick: bool = True,
        **arguments: Any,
    ):
        check_one_head(heads)
        check_counts({"num_quantizers": num_quantizers})
        super().__init__(
            num_quantizers,
            quantize_dropout,
            quantize_dropout_cutoff_index,
            quantize_dropout_multiple_of,
        )
        self.channel_first = channel_first
        self.layers = nn.ModuleList(
            SimVQ(
                dim=dim,
                codebook_size=codebook_size,
                rotation_trick=rotation_trick,
                channel_first=channel_first,
                **arguments,
            )
            for _ in range(num_quantizers)
        )

    @property
    def codebook_size(self) -> int:
        """K, the number of codes."""
        return self.layers[0].codebook_size  # type: ignore[return-value]

    @property
    def codebook_dim(self) -> int:
        """D, the length of a code."""
        return self.layers[0].codebook_dim  # type: ignore[return-value]

    @property
    def codebooks(self) -> Tensor:
        """The codes, [Q, K, D]."""
        return torch.stack([layer.codebook for layer in self.layers])  # type: ignore[misc]

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """The codes of indices [..., Q or fewer]: [Q, ...], zeros for -1 and stages left out."""
        codes = []
        for layer, chosen in zip(
            self.layers, padded_indices(indices, self.num_quantizers), strict=True
        ):
            found = layer.indices_to_codes(chosen.clamp(min=0))  # type: ignore[operator]
            dropped = chosen.unsqueeze(1 if self.channel_first and chosen.dim() > 1 else -1) < 0
            codes.append(torch.where(dropped, 0, found))
        return torch.stack(codes)

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """What :meth:`forward` returns for vectors with these indices."""
        return sum_of_stages(self.get_codes_from_indices(indices))

    @called_while_tracing
    def _compare_processes(self) -> None:
        """Make sure, once, that all processes draw the same last stage of the same."""
        names = ("num_quantizers", "quantize_dropout_cutoff_index", "quantize_dropout_multiple_of")
        require_same(
            self,
            "ResidualSimVQ",
            lambda: {name: getattr(self, name) for name in names},
            self.layers[0].codebook.device,  # type: ignore[arg-type]
        )

    def forward(
        self,
        x: Tensor,
        return_all_codes: bool = False,
        rand_quantize_dropout_fixed_seed: int | None = None,
    ) -> tuple[Tensor, ...]:
        """Quantize in stages.

        Args:
            x: [B, ..., D], or [B, D, ...] with ``channel_first``.
            return_all_codes: return the codes of all stages, too.
            rand_quantize_dropout_fixed_seed: draws the last stage; the same for the same number.

        Returns:
            ``(quantized, indices, losses)``: like x; int64, x's shape without D, with Q at the
            end, -1 for stages that were left out; [Q]. Then the codes, [Q, ...] like x.
        """
        last: int | Tensor = self.num_quantizers - 1
        if self._dropout is not None and self.training:
            if is_distributed():
                self._compare_processes()
            last = self._dropout.last(x.device, rand_quantize_dropout_fixed_seed)
        out: Tensor | None = None
        residual = x
        indices: list[Tensor] = []
        losses: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            runs = True if self._dropout is None else self._dropout.runs(number, last)
            if runs is False:
                indices.append(torch.full_like(indices[0], -1))
                losses.append(torch.zeros_like(losses[0]))
                continue
            quantized, chosen, loss = left_out_unless(runs, *layer(residual))
            residual = residual - quantized.detach()
            out = quantized if out is None else out + quantized
            indices.append(chosen)
            losses.append(loss)
        assert out is not None
        stacked = torch.stack(indices, dim=-1)
        result = (out, stacked, torch.stack(losses))
        return (*result, self.get_codes_from_indices(stacked)) if return_all_codes else result
