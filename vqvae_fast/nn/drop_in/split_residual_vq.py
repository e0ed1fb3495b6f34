"""Two residual quantizers side by side, as the Mimi codec has them."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vqvae_fast.autocast import is_autocast
from vqvae_fast.nn.codebook.kept_pack import KeepsPack, KeptForm
from vqvae_fast.nn.drop_in.joined_projections import JoinedProjections, join
from vqvae_fast.nn.drop_in.plain_stage import is_watched
from vqvae_fast.nn.drop_in.residual_vq import ResidualVQ
from vqvae_fast.nn.steps.checks import refuse
from vqvae_fast.nn.steps.freezable import Freezable


class SplitResidualVQ(Freezable, KeepsPack):
    """A semantic and an acoustic ResidualVQ of the same input; their outputs are added.

    The quantizer of Mimi (Defossez et al., arXiv 2410.00037, section 3.3): the first codes can
    be trained to mean something, and the others need not repair what that costs. Each quantizer
    lies between two 1x1 convolutions without bias.

    Args:
        dim: C, channels of the input.
        codebook_dim: D, dimension of a code.
        codebook_size: K, codes of each stage.
        num_quantizers: Q, stages of both together.
        num_semantic_quantizers: stages of the first, at least 1 and less than Q.
        projections: whether there are convolutions; without them C must be D.
        **residual_vq: further arguments of :class:`vqvae_fast.nn.ResidualVQ`, for both.

    Raises:
        ValueError: the numbers do not fit together.
    """

    _kept_projections: KeptForm[JoinedProjections] | None = None

    def __init__(
        self,
        *,
        dim: int,
        codebook_dim: int,
        codebook_size: int,
        num_quantizers: int,
        num_semantic_quantizers: int = 1,
        projections: bool = True,
        **residual_vq: Any,
    ):
        super().__init__()
        refuse(
            (
                not 1 <= num_semantic_quantizers < num_quantizers,
                "num_semantic_quantizers must be at least 1 and below num_quantizers="
                f"{num_quantizers}, got {num_semantic_quantizers}",
            ),
            (
                not projections and dim != codebook_dim,
                f"without projections codebook_dim must be dim={dim}, got {codebook_dim}",
            ),
        )
        self.num_quantizers, self.num_semantic_quantizers = num_quantizers, num_semantic_quantizers
        sizes = {"codebook_size": codebook_size, **residual_vq}
        self.rvq_first = _ProjectedRVQ(
            dim, codebook_dim, projections, num_quantizers=num_semantic_quantizers, **sizes
        )
        self.rvq_rest = _ProjectedRVQ(
            dim,
            codebook_dim,
            projections,
            num_quantizers=num_quantizers - num_semantic_quantizers,
            **sizes,
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize.

        Args:
            x: [B, C, T].

        Returns:
            ``(quantized, indices, loss)``: [B, C, T]; int64 [B, T, Q], the semantic stages first;
            the stages' losses, [Q] in train mode.
        """
        projections = self._joined_projections(x)
        if projections is None:
            first, first_indices, first_loss = self.rvq_first(x)
            rest, rest_indices, rest_loss = self.rvq_rest(x)
            quantized = first + rest
        else:
            rows = projections.enter(x.transpose(1, 2)).chunk(2, dim=-1)
            first, first_indices, first_loss = self.rvq_first.vq(rows[0])
            rest, rest_indices, rest_loss = self.rvq_rest.vq(rows[1])
            both = projections.leave(torch.cat([first, rest], dim=-1))
            quantized = both.transpose(1, 2).contiguous()
        return (
            quantized,
            torch.cat([first_indices, rest_indices], dim=-1),
            torch.cat([first_loss, rest_loss], dim=-1),
        )

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """Decode indices.

        Args:
            indices: int64 [B, T, Q]; the last stages may be missing, or -1 where left out.

        Returns:
            [B, C, T].
        """
        missing = self.num_quantizers - indices.shape[-1]
        if missing < 0:
            raise ValueError(
                f"indices must be [B, T, at most {self.num_quantizers}], got {list(indices.shape)}"
            )
        indices = F.pad(indices, (0, missing), value=-1)
        first, rest = indices.tensor_split([self.num_semantic_quantizers], dim=-1)
        output: Tensor = self.rvq_first.decode(first) + self.rvq_rest.decode(rest)
        return output

    def keep_composed(self, verify: bool) -> None:
        """As :meth:`KeepsPack.keep_composed`: the projections of both quantizers become one."""
        self._kept_projections = KeptForm(verify)

    def keep_no_pack(self) -> None:
        """As :meth:`KeepsPack.keep_no_pack`."""
        super().keep_no_pack()
        self._kept_projections = None

    def kept_forms(self) -> list[KeptForm[Any]]:
        """As :meth:`KeepsPack.kept_forms`."""
        return [] if self._kept_projections is None else [self._kept_projections]

    def _joined_projections(self, x: Tensor) -> JoinedProjections | None:
        """The projections of both quantizers as one; None where they are not to be joined."""
        kept = self._kept_projections
        if kept is None or self.training or torch.is_grad_enabled() or x.dtype != torch.float32:
            return None
        if x.dim() != 3 or is_autocast(x.device.type):
            return None
        into, out = [], []
        for half in (self.rvq_first, self.rvq_rest):
            if half.training or is_watched(half, _ProjectedRVQ):
                return None
            entry = _as_product(half.input_proj, x.shape[1])
            exit = None if entry is None else _as_product(half.output_proj, entry.out_channels)
            if entry is None or exit is None:
                return None
            into.append(entry)
            out.append(exit)
        if into[0].out_channels != into[1].out_channels:  # a half was replaced
            return None
        sources = [part for projection in (*into, *out) for part in projection.parameters()]
        return kept.made(sources, lambda: join(into, out), lambda: sources)


class _ProjectedRVQ(Freezable):
    """A ResidualVQ between two 1x1 convolutions, channels first."""

    def __init__(self, dim: int, codebook_dim: int, projections: bool, **residual_vq: Any):
        super().__init__()
        self.input_proj: nn.Module = nn.Identity()
        self.output_proj: nn.Module = nn.Identity()
        if projections:
            self.input_proj = nn.Conv1d(dim, codebook_dim, kernel_size=1, bias=False)
            self.output_proj = nn.Conv1d(codebook_dim, dim, kernel_size=1, bias=False)
        self.vq = ResidualVQ(dim=codebook_dim, **residual_vq)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized, indices, loss = self.vq(self.enter(x))
        output = _convolved(quantized, self.output_proj).transpose(1, 2).contiguous()
        return output, indices, loss

    def enter(self, x: Tensor) -> Tensor:
        """The rows [B, T, D] that are quantized, of x [B, C, T]."""
        return _convolved(x.transpose(1, 2), self.input_proj)

    def decode(self, indices: Tensor) -> Tensor:
        codes: Tensor = self.vq.get_output_from_indices(indices)
        return _convolved(codes, self.output_proj).transpose(1, 2).contiguous()


def _convolved(rows: Tensor, projection: nn.Module) -> Tensor:
    """The projections of rows [B, T, C]: on a CPU a product is up to twice as fast as Conv1d."""
    product = _as_product(projection, rows.shape[-1])
    if product is None:
        convolved: Tensor = projection(rows.transpose(1, 2))
        return convolved.transpose(1, 2)
    return F.linear(rows, product.weight[..., 0], product.bias)


def _as_product(projection: nn.Module, channels: int) -> nn.Conv1d | None:
    """The module, if it does no more than multiply rows of so many channels by its weight."""
    if is_watched(projection, nn.Conv1d):
        return None
    assert isinstance(projection, nn.Conv1d)
    is_pointwise = projection.kernel_size == projection.stride == (1,)
    unpadded = projection.padding in ((0,), "valid", "same")
    fits = projection.groups == 1 and projection.in_channels == channels
    return projection if is_pointwise and unpadded and fits else None
