"""The moving averages of a codebook, as tensors: the one place for what is done to them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from vqvae_fast import functional
from vqvae_fast.distributed import summed
from vqvae_fast.formulas import average_in_, smoothed_size, write_means_
from vqvae_fast.nn.codebook.metrics import code_counts

# By how much more or less than by 1 - decay each code's averages move: a number, [K] or [..., K],
# or a function of (sums [..., K, d], counts [..., K]) that gives it.
EmaWeight = Tensor | float | Callable[[Tensor, Tensor], Tensor] | None


class BatchSums(NamedTuple):
    """What the vectors of one batch or of several add up to, code by code.

    Attributes:
        counts: [..., K], how many vectors chose each code.
        sums: [..., K, d], the sums of those vectors, where the codes are averages.
    """

    counts: Tensor
    sums: Tensor | None

    def plus(self, earlier: "BatchSums | None") -> "BatchSums":
        """This batch together with earlier ones, which may be of another dtype or device."""
        if earlier is None:
            return self
        sums = self.sums
        if sums is not None and earlier.sums is not None:
            sums = sums + earlier.sums.to(sums)
        return BatchSums(self.counts + earlier.counts.to(self.counts), sums)

    def of_all(self, group: "torch.distributed.ProcessGroup | None" = None) -> "BatchSums":
        """The sum over all processes, or over those of a group, in one collective."""
        if self.sums is None:
            (counts,) = summed(self.counts, group=group)
            return BatchSums(counts, None)
        sums, counts = summed(self.sums, self.counts, group=group)
        return BatchSums(counts, sums)


class Averages(NamedTuple):
    """The moving averages of K codes, or of those that this process has of a divided codebook.

    Attributes:
        cluster_size: [..., K], how many vectors of a batch choose each code.
        embed_avg: [..., K, d], their sums, where the codes are averages.
    """

    cluster_size: Tensor
    embed_avg: Tensor | None

    def batch(self, rows: Tensor, indices: Tensor) -> BatchSums:
        """What a batch adds: rows [..., d] and the codes that they chose, -1: left out."""
        if self.embed_avg is None:
            return BatchSums(code_counts(indices, len(self.cluster_size)), None)
        sums, counts = functional.code_statistics(rows, indices, self.embed_avg)
        return BatchSums(counts, sums)

    def average_in(
        self, batch: BatchSums, decay: float, weight: Tensor | float | None = None
    ) -> None:
        """Move towards a batch by 1 - decay, times each code's weight: a number, [K] or [..., K].

        Raises:
            ValueError: the weight has another shape.
        """
        share: Tensor | float = 1.0 - decay
        if weight is not None:
            self.check_weight(weight)
            size = self.cluster_size
            weight = torch.as_tensor(weight, dtype=size.dtype, device=size.device)
            share = share * weight.expand_as(size)
        average_in_(self.cluster_size, batch.counts, share)
        if self.embed_avg is not None and batch.sums is not None:
            share = share[..., None] if isinstance(share, Tensor) else share
            average_in_(self.embed_avg, batch.sums, share)

    def check_weight(self, weight: EmaWeight) -> None:
        """Raise for an EMA weight that does not fit; of a function nothing is known yet."""
        if weight is None or callable(weight) or isinstance(weight, (int, float)):
            return
        books = self.cluster_size.shape
        if not isinstance(weight, Tensor) or weight.shape not in ((), books, books[1:]):
            got = list(weight.shape) if isinstance(weight, Tensor) else repr(weight)
            raise ValueError(f"the EMA weight must be [K={books[-1]}] or {list(books)}, got {got}")

    def write_means(self, codes: Tensor, size: Tensor) -> None:
        """Write the means of the vectors into codes [..., K, d], given the smoothed sizes."""
        assert self.embed_avg is not None
        write_means_(codes, self.embed_avg, size)

    def write_directions(self, codes: Tensor) -> None:
        """Write the directions of the means into codes [..., K, d] of unit length.

        The length does not matter. That of a code which no vector chooses falls with every step,
        until nothing is left: then the code stays.
        """
        averages = self.embed_avg
        assert averages is not None
        if torch.compiler.is_compiling():  # inductor (2.13) cannot fuse what reduces them
            averages = torch.ops.vqvae_fast.copy_of_codes(averages)  # with what wrote them
        largest = averages.abs().amax(dim=-1, keepdim=True)
        scaled = averages / largest.clamp(min=torch.finfo(largest.dtype).tiny)
        directions = nn_functional.normalize(scaled, dim=-1)
        codes.copy_(torch.where(largest > 0, directions, codes))

    def move_on(
        self, rows: Tensor, indices: Tensor, codes: Tensor, decay: float, eps: float
    ) -> None:
        """Average in a batch and write the means into the codes, in one pass over them."""
        torch.ops.vqvae_fast.moving_average_(
            self.embed_avg, self.cluster_size, codes.detach(), rows.detach(), indices, decay, eps
        )

    def smoothed(self, eps: float) -> Tensor:
        """The cluster sizes [..., K], none of them zero."""
        return smoothed_size(self.cluster_size, eps)

    def stand_at(self, codes: Tensor, size: Tensor) -> None:
        """Make the sums those of codes that have always been where they are, for size vectors."""
        if self.embed_avg is not None:
            self.embed_avg.copy_(_sums_at(codes, size, self.embed_avg))

    def reset(self, which: Tensor, codes: Tensor, size: Tensor | float) -> None:
        """Do the same for some codes only, as :meth:`CodeUsage.reset`, and set their size."""
        put(self.cluster_size, which, size)
        if self.embed_avg is not None:
            mask = which.dtype == torch.bool
            sizes = self.cluster_size if mask else self.cluster_size[which]
            put(self.embed_avg, which, _sums_at(codes, sizes, self.embed_avg))

    def dead(self, threshold: float) -> Tensor:
        """Which codes are chosen by fewer vectors of a batch than the threshold: bool [..., K]."""
        return self.cluster_size < threshold


def _sums_at(codes: Tensor, size: Tensor, average: Tensor) -> Tensor:
    """The sums of size [..., K] vectors that lie where the codes [..., K, d] are."""
    return codes.to(average.dtype) * size[..., None]


def put(into: Tensor, which: Tensor, values: Tensor | float) -> None:
    """Write rows of [..., K, ...]: those of a mask, bool [..., K], or of places, int64 [n].

    ``values`` are then like ``into``, or [n, ...] for [K, ...]. A mask does not wait for the
    device.
    """
    if which.dtype == torch.bool:
        which = which.view(which.shape + (1,) * (into.dim() - which.dim()))
        into.copy_(torch.where(which, values, into))
    else:
        into[which] = values
