"""Codes that are divided over processes: where each lies, and how vectors and codes meet.

Every process has vectors of its own and a part of the codes. All parts see all vectors; the
winners of the parts are reduced to the nearest code of all; and each process is sent the codes of
its own vectors, which is N / W rows, not K. N x K is nowhere, and neither are all K codes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from vqvae_fast import functional
from vqvae_fast.agreement import require_same
from vqvae_fast.distributed import numbers_of_all, rows_of_all, summed


class Batch(NamedTuple):
    """The vectors of all processes that share the codes.

    Attributes:
        rows: [N, D], those of all, in the processes' order.
        sizes: how many are each process's.
    """

    rows: Tensor
    sizes: list[int]


class CodeShards:
    """K codes over the last dimension of a mesh, in equal runs of consecutive codes.

    A first dimension, if there is one, holds copies: processes that have the same codes and other
    vectors, as in hybrid sharded data parallel.

    Args:
        num_codes: K.
        mesh: of one dimension or of two.
        arguments: further ones of the quantizer, by name; like K, they must be the same in all
            processes.

    Attributes:
        group: the processes that have all codes between them; copies: those that have this part.
        first, count: the codes here are first to first + count - 1.
        processes: their number, over both dimensions.

    Raises:
        TypeError: the mesh is none.
        ValueError: the mesh has more dimensions, or more processes than there are runs of codes;
            the processes differ.
    """

    def __init__(self, num_codes: int, mesh: DeviceMesh, arguments: Mapping[str, Any]):
        if not isinstance(mesh, DeviceMesh):
            raise TypeError(f"mesh must be a DeviceMesh, got {type(mesh).__name__}")
        if mesh.ndim not in (1, 2):
            raise ValueError(
                "mesh must have one dimension (codes) or two (copies, codes), got "
                f"{mesh.ndim}: {list(mesh.shape)}"
            )
        self.num_codes, self.mesh = num_codes, mesh
        self.group = mesh.get_group(mesh.ndim - 1)
        self.copies = mesh.get_group(0) if mesh.ndim == 2 else None
        self.processes = mesh.size()
        self.parts, self.part = mesh.size(mesh.ndim - 1), mesh.get_local_rank(mesh.ndim - 1)
        self.require_same(self, {"n_e": num_codes, "mesh": list(mesh.shape), **arguments})
        self.run = -(-num_codes // self.parts)  # as DTensor's Shard divides
        if self.run * (self.parts - 1) >= num_codes:
            raise ValueError(
                f"{num_codes} codes in runs of {self.run} leave some of {self.parts} processes "
                "without any"
            )
        self.first = self.part * self.run
        self.count = min(self.run, num_codes - self.first)

    def __deepcopy__(self, memo: dict[int, Any]) -> "CodeShards":
        """Itself: the processes are the same for a copy of a model."""
        return self

    def require_same(self, owner: object, arguments: Mapping[str, Any]) -> None:
        """Compare arguments with those of all processes of the mesh, once for this owner.

        Raises:
            ValueError: one differs; in all processes.
        """
        device = torch.empty(0, device=self.mesh.device_type).device
        groups = [self.group, *([self.copies] if self.copies is not None else [])]
        require_same(owner, "ShardedVectorQuantizer", lambda: arguments, device, groups)

    @property
    def placements(self) -> list[Placement]:
        """Of a DTensor that is divided in this way."""
        return [*([Replicate()] if self.copies else []), Shard(0)]

    def dtensor(self, part: Tensor) -> DTensor:
        """The part [count, ...] that is here as a part of a DTensor [K, ...]."""
        shape = torch.Size((self.num_codes, *part.shape[1:]))
        return DTensor.from_local(
            part,
            self.mesh,
            self.placements,
            run_check=False,
            shape=shape,
            stride=torch.empty(shape, device="meta").stride(),
        )

    def gather(self, rows: Tensor) -> Batch:
        """This process's vectors [n, D] together with those of the others; n may differ."""
        sizes = numbers_of_all(len(rows), rows.device, self.group)
        return Batch(rows_of_all(rows, sizes, self.group), sizes)

    @torch.no_grad()
    def search(self, rows: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest of all codes of rows [N, D], the same in all processes.

        Of equal codes the first one wins. Which of different codes whose distances agree in all
        digits of float64 does may depend on the number of processes.

        Args:
            rows: in float32 or float64, the same in all processes.
            codes: [count, D], the part that is here.

        Returns:
            (indices, squared distances): int64 [N], float64 [N].
        """
        here = functional.nearest_code(rows, codes).indices
        chosen = codes[here].double()
        # In float64, as one search over all codes decides: the parts' float32 would be too coarse.
        distances = (rows.double() - chosen).square().sum(dim=1)
        # A NaN is found at index 0. A code that is not finite loses against any other, a vector
        # at infinity has the same distance from all others.
        distances = distances.nan_to_num(torch.inf, torch.finfo(torch.float64).max)
        distances = torch.where(chosen.isfinite().all(dim=1), distances, torch.inf)
        nearest = distances.clone()
        dist.all_reduce(nearest, dist.ReduceOp.MIN, group=self.group)
        winners = torch.where(distances == nearest, here + self.first, self.num_codes)
        dist.all_reduce(winners, dist.ReduceOp.MIN, group=self.group)
        return winners, nearest

    def local(self, indices: Tensor) -> Tensor:
        """Indices of all codes as those of the part here; -1: of another part."""
        local = indices - self.first
        return torch.where((local >= 0) & (local < self.count), local, -1)

    def take(self, codes: Tensor, indices: Tensor, sizes: list[int]) -> Tensor:
        """The codes of this process's vectors, [n, D], with a gradient to those that are sent.

        That gradient is the mean over all processes, as DistributedDataParallel's.

        Args:
            codes: [count, D], the part here.
            indices: [N], of the vectors of all processes, in their order.
            sizes: how many are each process's.
        """
        rows: Tensor = _Take.apply(codes, indices, sizes, self)  # type: ignore[no-untyped-call]
        return rows


class _Take(torch.autograd.Function):
    """Rows go from where the codes lie to where the vectors do; gradients go back."""

    @staticmethod
    def forward(
        ctx: Any, codes: Tensor, indices: Tensor, sizes: list[int], shards: CodeShards
    ) -> Tensor:
        """codes [count, D], indices [N] -> [n, D]."""
        mine = indices.split(sizes)[shards.part]
        owners = mine // shards.run
        # From each owner the rows arrive in the order of this process's vectors.
        order = owners.argsort(stable=True)
        received = owners.bincount(minlength=shards.parts).tolist()
        local = shards.local(indices)
        sent = [int((part >= 0).sum()) for part in local.split(sizes)]
        wanted = local[local >= 0]
        arrived = codes.new_empty(len(mine), codes.shape[1])
        dist.all_to_all_single(arrived, codes[wanted], received, sent, group=shards.group)
        rows = torch.empty_like(arrived)
        rows[order] = arrived
        ctx.save_for_backward(order, wanted)
        ctx.splits, ctx.shards = (received, sent), shards
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """grad [n, D] -> [count, D]."""
        order, wanted = ctx.saved_tensors
        (received, sent), shards = ctx.splits, ctx.shards
        returned = grad.new_empty(len(wanted), grad.shape[1])
        dist.all_to_all_single(returned, grad[order], sent, received, group=shards.group)
        sums, _ = functional.segment_sum(returned, wanted, shards.count)
        if shards.copies is not None:
            (sums,) = summed(sums, group=shards.copies)
        return (sums / shards.processes).to(grad.dtype), None, None, None
