"""Which code a vector gets: the nearest, one that is drawn, the k best; also of its own codes."""

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

from torch import Tensor
from torch.nn import functional as nn_functional

from vqvae_fast import functional
from vqvae_fast.autograd.gather import take_codes
from vqvae_fast.nn.steps import logits

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

    def detached(self) -> "Chosen":
        """The same codes as constants."""
        return self._replace(quantized=self.quantized.detach())

    def beside(self, rows: Tensor) -> Tensor:
        """Rows [C, ..., d] in the shape of ``quantized``: each once for each of its codes."""
        if rows.dim() == self.quantized.dim():
            return rows
        return rows[..., None, :].expand_as(self.quantized)


class Wanted(NamedTuple):
    """What a call may ask of a search.

    Attributes:
        topk: the k best codes for each vector; one, and no dimension for it, unless given.
        temperature: at which a search that draws codes draws them; 0: the best.
        transform: gives each vector codes of its own.
    """

    topk: int | None
    temperature: float
    transform: CodebookTransform | None


class Search(Protocol):
    """How rows get their codes."""

    def finds_nearest(self, wanted: Wanted) -> bool:
        """Whether such a call gets the nearest of the stored codes, and nothing else."""

    def choose(self, rows: Tensor, codes: Tensor, wanted: Wanted) -> Chosen:
        """The codes of rows [C, ..., d] among codes [C, K, d]."""


class Best(NamedTuple):
    """The best code of each row, or the k best.

    Attributes:
        unit_length: vectors and codes have unit length, and the best has the largest product.
        metric: "cosine" compares directions, whatever the lengths.
    """

    unit_length: bool
    metric: Literal["euclidean", "cosine"] = "euclidean"

    def finds_nearest(self, wanted: Wanted) -> bool:
        """By the distance, of one code, which is stored."""
        stored = wanted.topk is None and wanted.transform is None
        return stored and self.metric == "euclidean"

    def choose(self, rows: Tensor, codes: Tensor, wanted: Wanted) -> Chosen:
        """By the exact search, where it is one stored code."""
        if wanted.topk is None and wanted.transform is None:
            indices = functional.nearest_code(rows, codes, metric=self.metric).indices
            return Chosen(codes, indices, take_codes(codes, indices))
        return _by_all_logits(rows, codes, wanted._replace(temperature=0.0), self.unit_length)


class Drawn(NamedTuple):
    """Codes that are drawn by softmax(-distances / temperature).

    Attributes:
        best: the search at a temperature of 0.
    """

    best: Best

    def finds_nearest(self, wanted: Wanted) -> bool:
        """Where there is no temperature."""
        return wanted.temperature <= 0 and self.best.finds_nearest(wanted)

    def choose(self, rows: Tensor, codes: Tensor, wanted: Wanted) -> Chosen:
        """Draw, with torch's generator."""
        if wanted.temperature <= 0:
            return self.best.choose(rows, codes, wanted)
        return _by_all_logits(rows, codes, wanted, self.best.unit_length)


class Softened(NamedTuple):
    """The codes of another search, with the gradient of the Gumbel softmax.

    Attributes:
        search: the other one.
        unit_length: as for :class:`Best`.
    """

    search: Search
    unit_length: bool

    def finds_nearest(self, wanted: Wanted) -> bool:
        """Never: the gradient looks at all codes."""
        return False

    def choose(self, rows: Tensor, codes: Tensor, wanted: Wanted) -> Chosen:
        """Soften one code of each row at a temperature above 0; otherwise search alone."""
        chosen = self.search.choose(rows, codes, wanted)
        if wanted.topk is not None or wanted.temperature <= 0:
            return chosen
        soft = logits.soft_codes(rows, chosen.codes, self.unit_length, wanted.temperature)
        return chosen._replace(quantized=chosen.quantized + (soft - soft.detach()))


def _by_all_logits(rows: Tensor, codes: Tensor, wanted: Wanted, unit_length: bool) -> Chosen:
    """The codes that the logits of all codes say, of the vectors' own codes if they have them."""
    own = wanted.transform is not None
    if wanted.transform is not None:
        codes = wanted.transform(codes)
        if unit_length:
            codes = nn_functional.normalize(codes, dim=-1, eps=1e-6)
    indices = logits.choose(rows, codes, unit_length, temperature=wanted.temperature, k=wanted.topk)
    take = _take_own_codes if own else take_codes
    return Chosen(codes, indices, take(codes, indices))


def _take_own_codes(codes: Tensor, indices: Tensor) -> Tensor:
    """Takes from codes [C, ..., K, d] those of indices [C, ...], or of k indices [C, ..., k]."""
    several = indices.dim() == codes.dim() - 1
    wanted = indices if several else indices[..., None]
    quantized = codes.gather(-2, wanted[..., None].expand(*wanted.shape, codes.shape[-1]))
    return quantized if several else quantized[..., 0, :]
