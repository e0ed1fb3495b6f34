"""SimVQ: a codebook that is a learned map of frozen random codes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vqvae_fast import functional
from vqvae_fast.autocast import without_autocast
from vqvae_fast.autograd.estimators import rotate_to
from vqvae_fast.autograd.gather import take_codes
from vqvae_fast.dtypes import common_float
from vqvae_fast.nn.codebook.kept_pack import KeepsPack, tensors_of
from vqvae_fast.nn.steps.checks import check_counts, refuse
from vqvae_fast.nn.steps.fixed_attributes import FixedAttributes
from vqvae_fast.nn.steps.freezable import Freezable
from vqvae_fast.nn.steps.layout import Layout, to_places, vectors_to_places
from vqvae_fast.packed import PackedCodebook


def _as_it_is(codebook: Tensor) -> Tensor:
    return codebook


class SimVQ(Freezable, KeepsPack, FixedAttributes):
    """vector-quantize-pytorch's SimVQ on the exact search; N x K numbers are never in memory.

    Zhu et al., "Addressing representation collapse in vector quantized models with one linear
    layer", arXiv 2411.02038: all codes move when one is used, so none dies.

    Args:
        dim: D, of the vectors.
        codebook_size: K, the number of codes.
        codebook_transform: module that maps the frozen codes [K, F] to [K, D]; a linear layer
            without bias unless given.
        init_fn: applied to the frozen codes once.
        channel_first: x is [B, D, ...].
        rotation_trick: the gradient of arXiv 2410.06424, else straight-through.
        input_to_quantize_commit_loss_weight: of mean((z - sg[q])^2) beside mean((sg[z] - q)^2).
        commitment_weight: of both.
        frozen_codebook_dim: F, D unless given.

    Raises:
        ValueError: a size is out of range, or not what ``init_fn`` gives.
    """

    FIXED = frozenset(("dim", "codebook_size", "channel_first"))
    frozen_codebook: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_transform: nn.Module | None = None,
        init_fn: Callable[[Tensor], Tensor] = _as_it_is,
        channel_first: bool = False,
        rotation_trick: bool = True,
        input_to_quantize_commit_loss_weight: float = 0.25,
        commitment_weight: float = 1.0,
        frozen_codebook_dim: int | None = None,
    ):
        super().__init__()
        frozen_dim = dim if frozen_codebook_dim is None else frozen_codebook_dim
        sizes = {"dim": dim, "codebook_size": codebook_size, "frozen_codebook_dim": frozen_dim}
        check_counts(sizes)
        self.dim, self.codebook_size, self.channel_first = dim, codebook_size, channel_first
        codebook = init_fn(torch.randn(codebook_size, frozen_dim) * frozen_dim**-0.5)
        wanted = f"[K={codebook_size}, F={frozen_dim}]"
        fits = codebook.shape == (codebook_size, frozen_dim)
        refuse((not fits, f"init_fn must give {wanted}, got {list(codebook.shape)}"))
        if codebook_transform is None:
            codebook_transform = nn.Linear(frozen_dim, dim, bias=False)
        self.code_transform = codebook_transform
        self.register_buffer("frozen_codebook", codebook)
        self.rotation_trick = rotation_trick
        self.input_to_quantize_commit_loss_weight = input_to_quantize_commit_loss_weight
        self.commitment_weight = commitment_weight
        self._layout = Layout(dim, channel_first, None, False)

    @property
    def codebook(self) -> Tensor:
        """The codes, [K, D]."""
        return self._transformed(self.frozen_codebook)

    def _transformed(self, codes: Tensor) -> Tensor:
        """The same codes, and so the same indices, with autocast and without."""
        with without_autocast(codes.device.type):
            transformed: Tensor = self.code_transform(codes)
        return transformed

    def _wide_codes(self) -> Tensor:
        """The codes as the search takes them if the vectors are not wider."""
        codes = self.codebook
        return codes.to(common_float(codes.dtype, torch.float32))

    def _packed_codes(self) -> PackedCodebook | None:
        """What :meth:`_wide_codes` makes, packed; None if it is not kept."""
        if self._kept_pack is None or self.training:
            return None
        transform = tuple(self.code_transform.modules())
        if any(part.training for part in transform):  # it may draw numbers
            return None
        sources = (self.frozen_codebook, *tensors_of(transform))
        return self._kept_pack.of(sources, self._wide_codes, transform)

    def pack_keepers(self) -> list[KeepsPack]:
        """As :meth:`Freezable.pack_keepers`."""
        return [self]

    @property
    def codebook_dim(self) -> int:
        """D, the length of a code."""
        return self.dim

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """The codes of indices as :meth:`forward` returns them; only these are transformed."""
        tokens, places = self._layout.index_tokens(indices)
        codes = self._transformed(take_codes(self.frozen_codebook, tokens))
        return vectors_to_places(codes, places)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize; also in eval, the loss is what it is.

        Args:
            x: [B, ..., D], or [B, D, ...] with ``channel_first``.

        Returns:
            ``(quantized, indices, loss)``: like x; int64, x's shape without D; 0-d.
        """
        tokens, places = self._layout.tokens(x)
        codes: Tensor | PackedCodebook | None = self._packed_codes()
        if codes is None or common_float(tokens.dtype, codes.dtype) != codes.dtype:
            codes = self._wide_codes()
            codes = codes.to(common_float(tokens.dtype, codes.dtype))
        rows = tokens.to(codes.dtype)
        quantized, indices, loss, _ = functional.quantize(
            rows,
            codes,
            commitment_weight=self.input_to_quantize_commit_loss_weight,
            codebook_weight=1.0,
        )
        if self.rotation_trick:
            quantized = rotate_to(rows, quantized.detach())
        quantized = vectors_to_places(quantized.to(x.dtype), places)
        return quantized, to_places(indices, places), loss * self.commitment_weight
