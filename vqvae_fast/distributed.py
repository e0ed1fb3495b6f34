"""The collectives with which quantizers exchange data when several processes train a model."""

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether there are other processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """The number of this process, from 0 on."""
    return dist.get_rank() if is_distributed() else 0


def summed(*tensors: Tensor, group: "dist.ProcessGroup | None" = None) -> tuple[Tensor, ...]:
    """Return the sums over all processes, in one collective; all tensors must have one dtype."""
    packed = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(packed, group=group)
    parts = packed.split([t.numel() for t in tensors])
    return tuple(part.view_as(t) for part, t in zip(parts, tensors, strict=True))


def numbers_of_all(
    number: int, device: torch.device, group: "dist.ProcessGroup | None" = None
) -> list[int]:
    """Return every process's number, in the order of the processes."""
    numbers = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=device)
    numbers[dist.get_rank(group)] = number
    (numbers,) = summed(numbers, group=group)
    return numbers.tolist()


def rows_of_all(
    rows: Tensor, sizes: list[int] | None = None, group: "dist.ProcessGroup | None" = None
) -> Tensor:
    """Return the rows [n, ...] of all processes, in the order of the processes; n may differ.

    ``sizes``: every process's n, if it is known.
    """
    if sizes is None:
        sizes = numbers_of_all(len(rows), rows.device, group)
    padded = rows.contiguous()
    if len(rows) < max(sizes):
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def texts_of_all(
    text: str, device: torch.device, group: "dist.ProcessGroup | None" = None
) -> list[str]:
    """Return every process's text, in the order of the processes."""
    letters = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)
    sizes = numbers_of_all(len(letters), device, group)
    parts = rows_of_all(letters, sizes, group).split(sizes)
    return [bytes(part.tolist()).decode() for part in parts]


def from_first(tensor: Tensor, group: "dist.ProcessGroup | None" = None) -> Tensor:
    """Return the first process's tensor in all processes."""
    tensor = tensor.contiguous()
    dist.broadcast(tensor, 0 if group is None else dist.get_global_rank(group, 0), group=group)
    return tensor


def each_from_its_turn(
    rows: Tensor,
    available: Tensor,
    group: "dist.ProcessGroup | None" = None,
    *,
    turns: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Take each row from one of the processes, in turn; all processes get the same rows.

    Args:
        rows: [n, D], the rows that this process proposes.
        available: 0-d bool, whether it has rows to propose.
        group: these processes instead of all.
        turns: int64 [n], the number of each row's turn; 0, 1, ... unless given.

    Returns:
        [n, D], and bool [n]: whether there was a proposal for the row.
    """
    turns = torch.arange(len(rows), device=rows.device) if turns is None else turns
    mine = (turns % dist.get_world_size(group) == dist.get_rank(group)) & available
    proposed = torch.where(mine[:, None], rows, 0)
    ours, found = summed(proposed, mine.to(rows.dtype), group=group)
    return ours, found > 0
