"""Gives all contenders the same number of threads."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vqvae_fast.bench.environment import cores


def check_threads(number: int) -> None:
    """Raise ValueError if there are more threads than cores; they would wait for each other."""
    if number > cores():
        raise ValueError(
            f"threads must be at most the number of cores that this process may use, {cores()}, "
            f"got {number}"
        )


@contextmanager
def all_threads(number: int) -> Iterator[None]:
    """Give torch, FAISS and every OpenMP or BLAS pool in the process ``number`` threads.

    torch's setting is restored at the end of the block. The pools of the peers are limited during
    the block if threadpoolctl (a dependency of scikit-learn) is installed.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        faiss = _optional("faiss")
        if faiss is not None:
            faiss.omp_set_num_threads(number)
        _optional("sklearn.metrics")  # loads its pools, to which the limit below applies
        pools = _optional("threadpoolctl")
        if pools is None:
            yield
        else:
            with pools.threadpool_limits(number):
                yield
    finally:
        torch.set_num_threads(before)


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
