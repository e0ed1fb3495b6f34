"""vector-quantize-pytorch's GroupedResidualVQ."""

from typing import Any

import torch
from torch import Tensor, nn

from vqvae_fast.agreement import require_same
from vqvae_fast.nn.drop_in.residual_vq import ResidualVQ
from vqvae_fast.nn.steps.checks import refuse
from vqvae_fast.nn.steps.freezable import Freezable
from vqvae_fast.nn.steps.quantize_dropout import draw_seed, skip_seed
from vqvae_fast.tracing import called_while_tracing


class GroupedResidualVQ(Freezable):
    """Cuts vectors into groups of dimensions, with a :class:`ResidualVQ` for each.

    Yang et al., HiFi-Codec, arXiv 2305.02765.

    Args:
        dim: D, the length of a vector.
        groups: G, a divisor of D.
        accept_image_fmap: x is [B, D, height, width].
        arguments: those of :class:`ResidualVQ`.

    Raises:
        ValueError: D is not a multiple of G, or what :class:`ResidualVQ` raises.
    """

    def __init__(
        self, *, dim: int, groups: int = 1, accept_image_fmap: bool = False, **arguments: Any
    ):
        super().__init__()
        uneven = groups < 1 or dim % groups
        refuse((uneven, f"dim must be a multiple of groups={groups}, got {dim}"))
        self.dim, self.groups, self.accept_image_fmap = dim, groups, accept_image_fmap
        rvqs = [
            ResidualVQ(dim=dim // groups, accept_image_fmap=accept_image_fmap, **arguments)
            for _ in range(groups)
        ]
        self.rvqs = nn.ModuleList(rvqs)
        self._layout = rvqs[0]._layout._replace(dim=dim)

    @property
    def codebooks(self) -> Tensor | tuple[tuple[Tensor, ...], ...]:
        """The codes of all groups, [G, Q, K, d]; tuples where sizes differ."""
        books = tuple(rvq.codebooks for rvq in self.rvqs)
        return torch.stack(books) if isinstance(books[0], Tensor) else books  # type: ignore[arg-type,return-value]

    @property
    def split_dim(self) -> int:
        """The dimension that is cut."""
        return 1 if self._layout.channel_first else -1

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """indices [G, B, ..., Q] -> [G, Q, B, ..., d]."""
        return torch.stack([r.get_codes_from_indices(i) for r, i in self._each(indices)])

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """What :meth:`forward` returns for vectors with these indices [G, B, ..., Q]."""
        parts = [rvq.get_output_from_indices(chosen) for rvq, chosen in self._each(indices)]
        return torch.cat(parts, dim=self.split_dim)

    def forward(
        self,
        x: Tensor,
        indices: Tensor | list[Tensor] | None = None,
        return_all_codes: bool = False,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Any, ...]:
        """Quantize every group; arguments as for :class:`ResidualVQ`.

        Returns:
            ``(quantized, indices, losses)``: like x; [G, B, ..., Q]; [G, Q]. Then a tuple
            of every group's codes, [Q, B, ..., d], if asked for. With ``indices`` [G, B, ..., Q]:
            ``(quantized, cross-entropy)``.
        """
        first: ResidualVQ = self.rvqs[0]  # type: ignore[assignment]
        self._layout.tokens(x)  # says what is wrong with x as a whole, not with a part of it
        how: dict[str, Any] = {
            "return_all_codes": return_all_codes,
            "sample_codebook_temp": sample_codebook_temp,
            "freeze_codebook": freeze_codebook,
            "mask": mask,
        }
        if indices is None and first.communicates(freeze_codebook):
            self._compare_processes()
        if self.training and first.quantize_dropout:
            how["rand_quantize_dropout_fixed_seed"] = draw_seed(x.device)
        elif self.training:
            skip_seed(x.device)  # what is drawn next is then what the peer draws
        chunks = x.chunk(self.groups, dim=self.split_dim)
        given = [None] * self.groups if indices is None else [i for _, i in self._each(indices)]
        parts = [
            rvq(chunk, indices=right, **how)
            for rvq, chunk, right in zip(self.rvqs, chunks, given, strict=True)
        ]
        quantized, *others = zip(*parts, strict=True)
        out = torch.cat(quantized, dim=self.split_dim)
        if indices is not None:
            return out, torch.stack(others[0]).sum()
        found, losses, *codes = others
        return (out, torch.stack(found), torch.stack(losses), *codes)

    @called_while_tracing
    def _compare_processes(self) -> None:
        """Make sure, once, that all processes have as many groups."""
        device = self.rvqs[0].codebooks[0].device  # type: ignore[index]
        require_same(
            self, "GroupedResidualVQ", lambda: {"dim": self.dim, "groups": self.groups}, device
        )

    def _each(self, indices: Tensor | list[Tensor]) -> list[tuple[Any, Tensor]]:
        if len(indices) != self.groups:
            raise ValueError(f"indices must be of {self.groups} groups, got {len(indices)}")
        return list(zip(self.rvqs, indices, strict=True))
