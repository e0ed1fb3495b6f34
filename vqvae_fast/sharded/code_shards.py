"""Divides codes over processes, searches them, and sends the chosen codes.

Every process has vectors of its own and a part of the codes. All vectors are sent to all parts. A
reduction finds the nearest code among the winners of the parts. Each process then receives the
codes of its own vectors, which are N / W rows and not K. No process stores N x K numbers or all K
codes.
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
        rows: [N, D], the vectors of all processes, in the order of the processes.
        sizes: the number of each process's vectors.
    """

    rows: Tensor
    sizes: list[int]


class CodeShards:
    """Divides K codes over the last dimension of a mesh, in equal runs of consecutive codes.

    If the mesh has two dimensions, the first holds copies: processes that have the same codes and
    other vectors, as in hybrid sharded data parallel.

    Args:
        num_codes: K, the number of codes.
        mesh: a mesh of one or two dimensions.
        arguments: other arguments of the quantizer, by name; like K, they must be the same in all
            processes.

    Attributes:
        group: the processes that together have all codes; copies: the processes that have this
            part.
        first: the first of this process's codes.
        count: how many codes it has.
        processes: the number of processes, over both dimensions.

    Raises:
        TypeError: mesh is not a DeviceMesh.
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
        self.run = -(-num_codes // self.parts)  # as Shard of DTensor divides
        if self.run * (self.parts - 1) >= num_codes:
            raise ValueError(
                f"{num_codes} codes in runs of {self.run} leave some of {self.parts} processes "
                "without any"
            )
        self.first = self.part * self.run
        self.count = min(self.run, num_codes - self.first)

    def __deepcopy__(self, memo: dict[int, Any]) -> "CodeShards":
        """Return the object itself, because a copy of a model has the same processes."""
        return self

    def require_same(self, owner: object, arguments: Mapping[str, Any]) -> None:
        """Compare arguments with those of all processes of the mesh, once for this owner.

        Raises:
            ValueError: an argument differs; all processes raise it.
        """
        device = torch.empty(0, device=self.mesh.device_type).device
        groups = [self.group, *([self.copies] if self.copies is not None else [])]
        require_same(owner, "ShardedVectorQuantizer", lambda: arguments, device, groups)

    @property
    def placements(self) -> list[Placement]:
        """The placements of a DTensor that is divided in this way."""
        return [*([Replicate()] if self.copies else []), Shard(0)]

    def dtensor(self, part: Tensor) -> DTensor:
        """Return the DTensor [K, ...] of which ``part`` [count, ...] is this process's part."""
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
        """Gather the vectors of all processes; ``rows`` [n, D] are this one's, and n may differ."""
        sizes = numbers_of_all(len(rows), rows.device, self.group)
        return Batch(rows_of_all(rows, sizes, self.group), sizes)

    @torch.no_grad()
    def search(self, rows: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Find the nearest of all codes for rows [N, D]; all processes get the same result.

        The first of equal codes wins. If different codes have the same distance in float64, the
        winner may depend on the number of processes.

        Args:
            rows: in float32 or float64, the same in all processes.
            codes: [count, D], this process's part.

        Returns:
            (indices, squared distances): int64 [N], float64 [N].
        """
        here = functional.nearest_code(rows, codes).indices
        chosen = codes[here].double()
        # The distances are float64, as in one search over all codes, because float32 would be too
        # coarse.
        distances = (rows.double() - chosen).square().sum(dim=1)
        # A vector with a NaN gets index 0. A code that is not finite loses against any other. A
        # vector with an infinity has the same distance from all finite codes.
        distances = distances.nan_to_num(torch.inf, torch.finfo(torch.float64).max)
        distances = torch.where(chosen.isfinite().all(dim=1), distances, torch.inf)
        nearest = distances.clone()
        dist.all_reduce(nearest, dist.ReduceOp.MIN, group=self.group)
        winners = torch.where(distances == nearest, here + self.first, self.num_codes)
        dist.all_reduce(winners, dist.ReduceOp.MIN, group=self.group)
        return winners, nearest

    def local(self, indices: Tensor) -> Tensor:
        """Map indices of all codes to indices in this part, or to -1 for codes of other parts."""
        local = indices - self.first
        return torch.where((local >= 0) & (local < self.count), local, -1)

    def take(self, codes: Tensor, indices: Tensor, sizes: list[int]) -> Tensor:
        """Return the codes of this process's vectors, [n, D], with a gradient to the codes.

        The gradient is the mean over all processes, as in DistributedDataParallel.

        Args:
            codes: [count, D], this process's part.
            indices: [N], of the vectors of all processes, in the order of the processes.
            sizes: the number of each process's vectors.
        """
        rows: Tensor = _Take.apply(codes, indices, sizes, self)  # type: ignore[no-untyped-call]
        return rows


class _Take(torch.autograd.Function):
    """Sends codes from the processes that have them to those of the vectors, and gradients back."""

    @staticmethod
    def forward(
        ctx: Any, codes: Tensor, indices: Tensor, sizes: list[int], shards: CodeShards
    ) -> Tensor:
        """Map codes [count, D] and indices [N] to the codes of this process's vectors, [n, D]."""
        mine = indices.split(sizes)[shards.part]
        owners = mine // shards.run
        # The rows of each owner arrive in the order of this process's vectors.
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
        """Map the gradient [n, D] to that of the codes [count, D]."""
        order, wanted = ctx.saved_tensors
        (received, sent), shards = ctx.splits, ctx.shards
        returned = grad.new_empty(len(wanted), grad.shape[1])
        dist.all_to_all_single(returned, grad[order], sent, received, group=shards.group)
        sums, _ = functional.segment_sum(returned, wanted, shards.count)
        if shards.copies is not None:
            (sums,) = summed(sums, group=shards.copies)
        return (sums / shards.processes).to(grad.dtype), None, None, None
