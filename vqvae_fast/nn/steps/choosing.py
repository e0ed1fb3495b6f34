"""Which code a vector gets: the nearest, one that is drawn, the k best; also of its own codes."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor
from torch.nn import functional as nn_functional

from vqvae_fast import functional
from vqvae_fast.autograd.gather import take_codes
from vqvae_fast.nn.steps import distances

CodebookTransform = Callable[[Tensor], Tensor]


class Chosen(NamedTuple):
    """What the codebook gives for rows [C, ..., d]: a code each, or k of them.

    Attributes:
        codes: all of them, [C, K, d]; [C, ..., K, d] where a function gave each row its own. With
            a gradient where they learn by one.
        indices: [C, ...], or [C, ..., k].
        quantized: [C, ..., d], or [C, ..., k, d]; with the codes' gradient.
    """

    codes: Tensor
    indices: Tensor
    quantized: Tensor


class Choice(NamedTuple):
    """How codes are chosen.

    Attributes:
        cosine: vectors and codes have unit length.
        cosine_search: by cosine, whatever their length.
        topk: the k best for each vector.
        drawn_at: temperature that codes are drawn at; 0: the best.
        softened_at: temperature of the Gumbel softmax that gives the gradient; 0: none.
        transform: gives each vector codes of its own.
    """

    cosine: bool
    cosine_search: bool
    topk: int | None
    drawn_at: float
    softened_at: float
    transform: CodebookTransform | None

    @property
    def is_nearest(self) -> bool:
        """Whether it is the nearest code and nothing else."""
        return (
            self.topk is None
            and self.drawn_at <= 0
            and self.softened_at <= 0
            and self.transform is None
            and not self.cosine_search
        )

    def choose(self, rows: Tensor, codes: Tensor) -> Chosen:
        """The codes [C, K, d] of rows [C, ..., d]."""
        if self.transform is not None:
            codes = self.transform(codes)
            if self.cosine:
                codes = nn_functional.normalize(codes, dim=-1, eps=1e-6)
        indices = self._indices(rows, codes)
        if self.transform is None:
            quantized = take_codes(codes, indices)
        else:
            quantized = _own_codes(codes, indices, self.topk is not None)
        if self.softened_at > 0:
            soft = distances.soft_codes(rows, codes, self.cosine, self.softened_at)
            quantized = quantized + (soft - soft.detach())
        return Chosen(codes, indices, quantized)

    def _indices(self, rows: Tensor, codes: Tensor) -> Tensor:
        if self.transform is None and self.topk is None and self.drawn_at <= 0:
            metric: Literal["cosine", "euclidean"] = "cosine" if self.cosine_search else "euclidean"
            return functional.nearest_code(rows, codes, metric=metric).indices
        return distances.choose(rows, codes, self.cosine, temperature=self.drawn_at, k=self.topk)


def _own_codes(codes: Tensor, indices: Tensor, few: bool) -> Tensor:
    """Of codes [C, ..., K, d] those of indices [C, ...], or of a few [C, ..., k]."""
    wanted = indices if few else indices[..., None]
    quantized = codes.gather(-2, wanted[..., None].expand(*wanted.shape, codes.shape[-1]))
    return quantized if few else quantized[..., 0, :]
