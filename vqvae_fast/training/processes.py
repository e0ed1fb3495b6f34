"""Shares a run by several processes: ``torchrun --nproc-per-node 4 -m vqvae_fast.cli train ...``.

Each takes its share of every batch and of the held-out images. Only the first one writes files
and prints.
"""

import gc
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from inspect import signature
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vqvae_fast.distributed import is_distributed, summed, world_size
from vqvae_fast.errors import UserError
from vqvae_fast.models import VQVAE, VQVAEOutput

T = TypeVar("T")

# torch 2.13 renamed the argument, and warns of the old name.
_NO_BUFFERS: dict[str, Any] = (
    {"forward_sync_buffers": False}
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else {"broadcast_buffers": False}
)
# How long a process waits for another, which may be drawing pictures. A process that ends is
# noticed at once.
_PATIENCE = timedelta(minutes=10)


@contextmanager
def launched() -> Iterator[None]:
    """Join the other processes if torchrun has started any, and leave them at the end."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        backend = "cpu:gloo,cuda:nccl"
    # DistributedDataParallel imports torch's compiler. What that takes from the group when it is
    # imported, it never lets go of, so it is imported before there is a group.
    importlib.import_module("torch._dynamo")
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()
        # DistributedDataParallel's wrapper, a reference cycle, still holds the group. Its threads
        # release tensors late, and a release while the interpreter ends crashes the process.
        gc.collect()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def is_first() -> bool:
    """Whether this process is the one that writes files and prints."""
    return rank() == 0


def in_first(make: Callable[[], T]) -> T:
    """Call ``make`` in the first process; return its result or raise its UserError in all."""
    made: list[Any] = [None, None]
    if is_first():
        try:
            made[0] = make()
        except UserError as error:  # the other processes wait for a result
            made[1] = error
    if is_distributed():
        dist.broadcast_object_list(made)
    if made[1] is not None:
        raise made[1]
    result: T = made[0]
    return result


def in_all(make: Callable[[], T]) -> T:
    """Call ``make`` in every process; if it fails in one, raise that UserError in all."""
    made: list[T] = []
    failed: UserError | None = None
    try:
        made.append(make())
    except UserError as error:  # the other processes are about to wait for this one
        failed = error
    failures = of_all(failed)
    for number, failure in enumerate(failures):
        if failure is not None:
            raise failure if all(failures) else UserError(f"process {number}: {failure}")
    return made[0]


def of_all(value: T) -> list[T]:
    """Every process's value, in their order."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def share(count: int) -> slice:
    """The part of ``count`` things that is this process's; shares differ by one at most."""
    return slice(count * rank() // world_size(), count * (rank() + 1) // world_size())


def total(tensor: Tensor) -> Tensor:
    """The sum over all processes."""
    return summed(tensor)[0] if is_distributed() else tensor


def any_of_all(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return any(of_all(flag))


class _WithIndices(nn.Module):
    """The forward pass that training takes, as DistributedDataParallel needs it."""

    def __init__(self, model: VQVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> VQVAEOutput:
        return self.model.forward_with_indices(x)


def data_parallel(model: VQVAE) -> Callable[[Tensor], VQVAEOutput]:
    """The model's forward pass, whose gradients are the mean over all processes.

    The quantizer keeps the codebook the same everywhere, so no buffers are sent.
    """
    if not is_distributed():
        return model.forward_with_indices
    return DistributedDataParallel(_WithIndices(model), **_NO_BUFFERS)
