"""Ways to sum rows by their code and to count them; ours is first."""

import torch
from torch import Tensor

from vqvae_fast.bench.peers.base import SumCall, SumPeer
from vqvae_fast.bench.peers.ours_gpu import no_extension


def _ours(src: Tensor, indices: Tensor, count: int) -> SumCall:
    return lambda: torch.ops.vqvae_fast.segment_sum(src, indices, count)


def _cuda(src: Tensor, indices: Tensor, count: int) -> SumCall:
    return lambda: torch.ops.vqvae_fast_cuda.segment_sum(src, indices, count)


def _index_add(src: Tensor, indices: Tensor, count: int) -> SumCall:
    ones = src.new_ones(len(src))

    def call() -> tuple[Tensor, Tensor]:
        sums = src.new_zeros(count, src.shape[1]).index_add_(0, indices, src)
        return sums, src.new_zeros(count).index_add_(0, indices, ones)

    return call


def _deterministic(src: Tensor, indices: Tensor, count: int) -> SumCall:
    add = _index_add(src, indices, count)

    def call() -> tuple[Tensor, Tensor]:
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            return add()
        finally:
            torch.use_deterministic_algorithms(before)

    return call


def _scatter_add(src: Tensor, indices: Tensor, count: int) -> SumCall:
    def call() -> tuple[Tensor, Tensor]:
        sums = src.new_zeros(count, src.shape[1])
        sums.scatter_add_(0, indices[:, None].expand_as(src), src)
        return sums, torch.bincount(indices, minlength=count)

    return call


SUM_PEERS = (
    SumPeer("ours", "the op: sums in float64, in a fixed order, and counts", _ours),
    SumPeer("ours, CUDA C++", "the same op in the compiled kernels", _cuda, no_extension),
    SumPeer("torch index_add_", "adds the rows and ones onto zeros, by atomics", _index_add),
    SumPeer(
        "torch index_add_, deterministic",
        "the same under use_deterministic_algorithms",
        _deterministic,
    ),
    SumPeer(
        "torch scatter_add_+bincount",
        "atomics; bincount waits for the device",
        _scatter_add,
    ),
)
