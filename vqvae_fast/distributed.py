"""What the quantizers tell each other when a model is trained by several processes."""

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether there are other processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def summed(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The sums over all processes, in one collective; tensors of one dtype."""
    packed = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(packed)
    parts = packed.split([t.numel() for t in tensors])
    return tuple(part.view_as(t) for part, t in zip(parts, tensors, strict=True))


def each_from_its_turn(rows: Tensor, available: Tensor) -> tuple[Tensor, Tensor]:
    """Row i from process i modulo their number: the same rows everywhere.

    Args:
        rows: [n, D], what this process proposes.
        available: 0-d bool, whether it has anything to propose.

    Returns:
        [n, D], and bool [n]: whether there was a proposal for the row.
    """
    turns = torch.arange(len(rows), device=rows.device) % dist.get_world_size()
    mine = (turns == dist.get_rank()) & available
    ours, found = summed(torch.where(mine[:, None], rows, 0), mine.to(rows.dtype))
    return ours, found > 0
