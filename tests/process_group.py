"""Processes that meet in a folder and work together, as a run of torchrun has them."""

import gc
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


@contextmanager
def process_group(rank: int, world: int, folder: Path | str) -> Iterator[None]:
    """Makes this process one of those that meet in the folder."""
    before = os.environ.get("RANK")
    os.environ["RANK"] = str(rank)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting-of-{world}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    try:
        yield
    finally:
        dist.destroy_process_group()
        if before is None:
            del os.environ["RANK"]  # a later test may take this process for one of torchrun's
        else:
            os.environ["RANK"] = before
        # Wrappers of models are reference cycles that still hold the group. Its threads release
        # tensors late, and a release while the interpreter ends crashes the process.
        gc.collect()


def run_together(
    work: Callable[..., None], world: int, folder: Path | str, *arguments: Any
) -> None:
    """Runs work(rank, folder, *arguments) in processes of their own; raises what one raises.

    A server forks them that has imported torch, of which this part takes as long as the rest.
    """
    multiprocessing.set_forkserver_preload(["torch._dynamo"])
    given = (work, world, str(folder), arguments)
    mp.start_processes(_run, args=given, nprocs=world, start_method="forkserver")


def _run(
    rank: int, work: Callable[..., None], world: int, folder: str, arguments: tuple[Any, ...]
) -> None:
    with process_group(rank, world, folder):
        work(rank, folder, *arguments)
