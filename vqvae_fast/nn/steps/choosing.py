"""Choosing codes for vectors: the nearest, a drawn one, the k best, or among a row's own codes."""

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from vqvae_fast import functional
from vqvae_fast.autograd.gather import take_codes
from vqvae_fast.formulas import directions
from vqvae_fast.nn.steps import logits
from vqvae_fast.packed import PackedCodebook

CodebookTransform = Callable[[Tensor], Tensor]


class Chosen(NamedTuple):
    """The codes that were chosen for rows [C, ..., d]: one for each, or k.

    Attributes:
        codes: all codes, [C, K, d], or [C, ..., K, d] if a function gave each row codes of its own.
            They require a gradient if they learn by one.
        indices: [C, ...], or [C, ..., k].
        quantized: [C, ..., d], or [C, ..., k, d]: the chosen codes, with a gradient to ``codes``.
    """

    codes: Tensor
    indices: Tensor
    quantized: Tensor

    def detached(self) -> "Chosen":
        """Return the same codes as constants."""
        return self._replace(quantized=self.quantized.detach())

    def beside(self, rows: Tensor) -> Tensor:
        """Repeat rows [C, ..., d] for each of their codes, to the shape of ``quantized``."""
        if rows.dim() == self.quantized.dim():
            return rows
        return rows[..., None, :].expand_as(self.quantized)


class Wanted(NamedTuple):
    """The options of a call to a search.

    Attributes:
        topk: find the k best codes for each vector. If None, find one code and add no dimension.
        temperature: the temperature at which a :class:`Drawn` search draws codes; 0 takes the best.
        transform: a function that gives each vector codes of its own.
    """

    topk: int | None
    temperature: float
    transform: CodebookTransform | None

    def one_stored_code(self) -> bool:
        """Whether the call wants one of the stored codes for each vector."""
        return self.topk is None and self.transform is None


class Search(Protocol):
    """A strategy that chooses codes for rows."""

    def finds_nearest(self, wanted: Wanted) -> bool:
        """Return whether such a call gets the nearest stored code and nothing else."""

    def choose(self, rows: Tensor, codes: Tensor, wanted: Wanted) -> Chosen:
        """Choose among codes [C, K, d] for rows [C, ..., d]."""


class Best(NamedTuple):
    """Finds the best code of each row, or the k best.

    Attributes:
        unit_length: vectors and codes have unit length, and the best code has the largest product.
        metric: "cosine" compares directions, whatever the lengths.
    """

    unit_length: bool
    metric: Literal["euclidean", "cosine"] = "euclidean"

    def finds_nearest(self, wanted: Wanted) -> bool:
        """Return whether the call wants one stored code by its distance."""
        return wanted.one_stored_code() and self.metric == "euclidean"

    def choose(self, rows: Tensor, codes: Tensor, wanted: Wanted) -> Chosen:
        """Choose by the exact search among stored codes, by all logits among a vector's own."""
        if wanted.transform is not None:
            return _by_all_logits(rows, codes, wanted._replace(temperature=0.0), self.unit_length)
        if wanted.topk is None:
            indices = functional.nearest_code(rows, codes, metric=self.metric).indices
        else:
            found = functional.nearest_codes(rows, codes, wanted.topk, metric=self.metric)
            indices = found.indices
        return Chosen(codes, indices, take_codes(codes, indices))

    @property
    def compared(self) -> Callable[[Tensor], Tensor]:
        """What makes of vectors and codes those between which the search measures distances."""
        return directions if self.metric == "cosine" else _themselves

    def choose_packed(
        self, rows: Tensor, codes: Callable[[], Tensor], packed: PackedCodebook
    ) -> Chosen:
        """As :meth:`choose` for one stored code of each row, without a gradient to the codes.

        Args:
            rows: [C, ..., d].
            codes: gives the codes [C, K, d].
            packed: what :attr:`compared` makes of the codes.
        """
        rows = self.compared(rows.detach())
        if self.metric == "euclidean":
            quantized, indices, _ = torch.ops.vqvae_fast.quantize_packed(
                rows, packed.codebook, packed.packed
            )
            return Chosen(packed.codebook, indices, quantized)
        indices, _ = torch.ops.vqvae_fast.nearest_packed_code(rows, packed.codebook, packed.packed)
        stored = codes().detach()
        if len(stored) == 1:  # embedding takes a third of the time of an op in Python
            quantized = nn_functional.embedding(indices, stored[0])
        else:
            quantized = torch.ops.vqvae_fast.take_codes(stored, indices)
        return Chosen(stored, indices, quantized)


class Drawn(NamedTuple):
    """Draws codes by softmax(-distances / temperature).

    Attributes:
        best: the search at a temperature of 0.
    """

    best: Best

    def finds_nearest(self, wanted: Wanted) -> bool:
        """Return whether there is no temperature and ``best`` finds the nearest."""
        return wanted.temperature <= 0 and self.best.finds_nearest(wanted)

    def choose(self, rows: Tensor, codes: Tensor, wanted: Wanted) -> Chosen:
        """Draw the codes with torch's generator."""
        if wanted.temperature <= 0:
            return self.best.choose(rows, codes, wanted)
        return _by_all_logits(rows, codes, wanted, self.best.unit_length)


class Softened(NamedTuple):
    """Takes the codes of another search and gives them the gradient of the Gumbel softmax.

    Attributes:
        search: the other search.
        unit_length: as for :class:`Best`.
    """

    search: Search
    unit_length: bool

    def finds_nearest(self, wanted: Wanted) -> bool:
        """Return False, because the gradient needs all codes."""
        return False

    def choose(self, rows: Tensor, codes: Tensor, wanted: Wanted) -> Chosen:
        """Soften one code of each row at a temperature above 0; otherwise only search."""
        chosen = self.search.choose(rows, codes, wanted)
        if wanted.topk is not None or wanted.temperature <= 0:
            return chosen
        soft = logits.soft_codes(rows, chosen.codes, self.unit_length, wanted.temperature)
        return chosen._replace(quantized=chosen.quantized + (soft - soft.detach()))


def _themselves(vectors: Tensor) -> Tensor:
    return vectors


def _by_all_logits(rows: Tensor, codes: Tensor, wanted: Wanted, unit_length: bool) -> Chosen:
    """Chooses by the logits of all codes, or of each vector's own codes if it has any."""
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
