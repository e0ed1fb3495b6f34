"""Stages with projections whose linear maps are composed, so that a call needs two products.

Stage i of residual quantization sees ``e_i = W_i (x - sum_{j<i} (V_j c_j + v_j)) + w_i`` of a
vector x, where ``c_j`` are the codes that the stages before it have chosen. That is a linear map of
x, minus linear maps of few dimensions of the codes:
``W_i x + (w_i - sum_{j<i} W_i v_j) - sum_{j<i} (W_i V_j) c_j``.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from vqvae_fast.nn.codebook.kept_pack import KeptForm
from vqvae_fast.nn.drop_in.plain_stage import ProjectedStage
from vqvae_fast.packed import PackedCodebook, pack


class Compared(Protocol):
    """How a stage chooses a code."""

    @property
    def metric(self) -> str:
        """``"euclidean"``, or ``"cosine"`` to compare directions."""

    @property
    def compared(self) -> Callable[[Tensor], Tensor]:
        """What makes of codes those between which the search measures distances."""


class Composable(Protocol):
    """A stage that projects vectors, finds a code of D dimensions and projects it back."""

    @property
    def weight_in(self) -> Tensor:
        """[D, C], leads to the codes."""

    @property
    def bias_in(self) -> Tensor | None:
        """[D]."""

    @property
    def weight_out(self) -> Tensor:
        """[C, D], leads back."""

    @property
    def bias_out(self) -> Tensor | None:
        """[C]."""

    @property
    def codes(self) -> Tensor:
        """[1, K, D]."""

    @property
    def search(self) -> Compared:
        """The search."""


class ComposedStages(NamedTuple):
    """Q stages that look for codes of D dimensions, for vectors of C channels.

    The attributes are arguments of the op ``composed_residual_code``, which describes them.
    """

    entry: Tensor
    entry_bias: Tensor
    codebooks: Tensor
    books: PackedCodebook
    corrections: Tensor
    exit: Tensor
    exit_bias: Tensor
    cosine: bool

    @property
    def nbytes(self) -> int:
        """The memory of all."""
        parts = (self.entry, self.entry_bias, self.corrections, self.exit, self.exit_bias)
        codes = 0 if self.codebooks is self.books.codebook else self.codebooks.nbytes
        return sum(part.nbytes for part in parts) + codes + self.books.nbytes

    def quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors [B, N, C] -> indices [B, N, Q], and the sum of what the stages give [B, N, C]."""
        found: tuple[Tensor, Tensor] = torch.ops.vqvae_fast.composed_residual_code(
            vectors,
            self.entry,
            self.entry_bias,
            self.codebooks,
            self.books.codebook,
            self.books.packed,
            self.corrections,
            self.exit,
            self.exit_bias,
            self.cosine,
        )
        return found


def composed_stages(
    stages: Sequence[ProjectedStage], kept: KeptForm[ComposedStages]
) -> ComposedStages | None:
    """The stages composed, as they are kept; None if they cannot be, or must not be kept."""
    searches = [stage.search for stage in stages]
    if searches.count(searches[0]) < len(searches):
        return None
    sources = [part for stage in stages for part in stage.tensors if part is not None]
    return kept.made(sources, lambda: compose(stages), lambda: sources, searches)


def compose(stages: Sequence[Composable]) -> ComposedStages:
    """Compose the maps in float64, and round each result to float32 once.

    Raises:
        ValueError: the stages do not project to the same number of dimensions.
    """
    shapes = {(stage.weight_in.shape, stage.weight_out.shape) for stage in stages}
    if len(shapes) > 1:
        raise ValueError(
            "compose_projections needs stages whose projections have the same sizes, got weights "
            f"{sorted([list(into), list(out)] for into, out in shapes)}"
        )
    into = torch.stack([stage.weight_in for stage in stages]).double()  # [Q, D, C]
    out = torch.stack([stage.weight_out for stage in stages]).double()  # [Q, C, D]
    into_bias = torch.stack([_bias(stage.weight_in, stage.bias_in) for stage in stages])  # [Q, D]
    out_bias = torch.stack([_bias(stage.weight_out, stage.bias_out) for stage in stages])  # [Q, C]
    number, dim, channels = into.shape
    entry = into.view(number * dim, channels).t()
    taken_before = out_bias.cumsum(0) - out_bias
    entry_bias = into_bias - (into @ taken_before[..., None])[..., 0]
    stage_of_column = torch.arange(number, device=into.device).repeat_interleave(dim)
    is_behind = stage_of_column > torch.arange(number, device=into.device)[:, None]
    corrections = torch.where(is_behind[:, None], out.transpose(1, 2) @ entry, 0)
    books = [stage.codes[0] for stage in stages]
    largest = max(map(len, books))
    codes = torch.stack(
        [nn_functional.pad(book, (0, 0, 0, largest - len(book)), value=torch.nan) for book in books]
    )
    search = stages[0].search
    cosine = search.metric == "cosine"
    packed = pack(search.compared(codes))
    return ComposedStages(
        entry=columns_filled(entry.float()),
        entry_bias=columns_filled(entry_bias.flatten().float()),
        codebooks=codes if cosine else packed.codebook,
        books=packed,
        corrections=corrections.float(),
        exit=columns_filled(out.transpose(1, 2).reshape(number * dim, channels).float()),
        exit_bias=columns_filled(out_bias.sum(0).float()),
        cosine=cosine,
    )


def columns_filled(matrix: Tensor) -> Tensor:
    """The columns up to a multiple of 16, so that kernels may read all in vectors."""
    return nn_functional.pad(matrix, (0, -matrix.shape[-1] % 16)).contiguous()


def _bias(weight: Tensor, bias: Tensor | None) -> Tensor:
    """The bias of a linear map in float64; zeros if it has none."""
    return weight.new_zeros(len(weight)).double() if bias is None else bias.double()
