"""Checks once, before learning, that processes that share a codebook have the same quantizer.

Without this check, codebooks of different sizes lead to an abort inside a collective, or to a hang.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
import torch.distributed as dist

from vqvae_fast.distributed import texts_of_all

# These are the modules that each group has compared. A copy of a module counts as a new module in
# all processes.
_compared: "WeakKeyDictionary[dist.ProcessGroup, WeakSet[object]]" = WeakKeyDictionary()


def require_same(
    owner: object,
    title: str,
    arguments: Callable[[], Mapping[str, Any]],
    device: torch.device,
    groups: "Sequence[dist.ProcessGroup | None]" = (None,),
) -> None:
    """Compare arguments with those of the other processes, the first time for this owner.

    All processes call it at the same place. If torch.compile traces, the caller must be a method
    that :func:`vqvae_fast.tracing.called_while_tracing` marks: the comparison then runs while the
    graph is built and is not part of it.

    Args:
        owner: the module that has the arguments.
        title: its name in the message.
        arguments: returns them by name. It is called only once and may wait for the device. A value
            that JSON cannot represent is compared by its str().
        device: a device from which the processes can send tensors.
        groups: the processes to compare. Several groups, such as the dimensions of a mesh, are
            compared one after the other. None stands for all processes.

    Raises:
        ValueError: an argument differs. All processes raise it; torch.compile wraps it in an error
            of its own.
    """
    first = groups[0] if groups[0] is not None else dist.group.WORLD
    assert first is not None
    compared = _compared.setdefault(first, WeakSet())
    if owner in compared:
        return
    mine = json.dumps([[dist.get_rank(), {"class": title, **arguments()}]], default=str)
    for group in groups:
        theirs = [json.loads(text) for text in texts_of_all(mine, device, group)]
        mine = json.dumps([record for records in theirs for record in records])
    different = _differences(sorted(json.loads(mine)))
    if different:
        raise ValueError(f"{title} must be the same in all processes, but {'; '.join(different)}")
    compared.add(owner)


def _differences(records: list[tuple[int, dict[str, Any]]]) -> list[str]:
    """Returns a clause for each argument that differs in (rank, arguments) of the processes."""
    clauses = []
    names = dict.fromkeys(name for _, arguments in records for name in arguments)
    for name in names:
        ranks: dict[str, list[int]] = {}
        for rank, arguments in records:
            value = repr(arguments[name]) if name in arguments else "missing"
            ranks.setdefault(value, []).append(rank)
        if len(ranks) > 1:
            values = " and ".join(f"{value} {_in(of)}" for value, of in ranks.items())
            clauses.append(f"{name} is {values}")
    return clauses


def _in(ranks: list[int]) -> str:
    """Returns the ranks in words; of many, only the first."""
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"in process{'es' if len(ranks) > 1 else ''} {shown}"
