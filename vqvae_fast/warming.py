"""Compiles the GPU kernels that a call needs before a graph capture or before the first step."""

import json
import socket
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from vqvae_fast import backends, functional
from vqvae_fast.distributed import is_distributed, texts_of_all


def warm_up(
    z: Tensor,
    codebook: Tensor,
    *,
    residual: bool = False,
    channel_first: bool = False,
    group: "dist.ProcessGroup | None" = None,
) -> bool:
    """Compile and load the kernels that calls with tensors like these will launch.

    The Triton kernels are compiled at their first call, for some seconds, and then lie in Triton's
    cache on disk. A call that is captured into a CUDA graph must find them loaded. This function
    makes the calls once and drops the results: the search, the quantization with its backward pass,
    and the segment sum; or, with ``residual``, the search through all stages.

    Under ``torch.distributed`` all processes call it at the same place. On each host the first
    process compiles, and the others then load what it has put into the cache.

    Which kernels a search takes depends on N, K, D, the layout and the type (little work takes
    another kernel than much): for each shape that will be captured, call it with that shape.

    Args:
        z: [..., D], or [H, ..., D] with H books, or with ``channel_first`` [B, D, ...]; of the
            device, the type and the strides that will be quantized. The values do not matter.
        codebook: [K, D] or [H, K, D]; the books [Q, K, D] with ``residual``.
        residual: the calls will be :func:`vqvae_fast.residual_nearest_code`.
        channel_first: as for :func:`vqvae_fast.quantize`; not with ``residual``.
        group: the processes that call it; all of them unless given.

    Returns:
        Whether the backend that serves the tensors' device compiles its kernels, as Triton does. If
        not, as on a CPU, there is nothing to compile, and the function does nothing.

    Raises:
        ValueError: shapes or devices do not fit each other; ``residual`` and ``channel_first``
            exclude each other.
        TypeError: a dtype is not a float type, or the two differ.
        RuntimeError: the current stream is being captured; or the kernels could not be compiled in
            one of several processes, and all of them raise it.
    """
    if residual and channel_first:
        raise ValueError("residual and channel_first exclude each other, got both")
    if z.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("warm_up must be called before the capture of a graph, not inside it")
    compiles = backends.by_name()[backends.chosen(z.device).name].compiles

    def call() -> None:
        if compiles:
            _call_all(z, codebook, residual, channel_first)

    if is_distributed():
        _first_of_each_host_first(call, compiles, z.device, group)
    else:
        call()
    return compiles


def _call_all(z: Tensor, codebook: Tensor, residual: bool, channel_first: bool) -> None:
    """Makes every call that tensors like these may cause, and drops the results."""
    z, codebook = z.detach(), codebook.detach()
    if residual:
        functional.residual_nearest_code(z, codebook)
        return
    rows = z.movedim(1, -1) if channel_first else z
    indices = functional.nearest_code(rows, codebook).indices
    functional.segment_sum(rows, indices, codebook.numel() // codebook.shape[-1])
    functional.quantize(z, codebook, channel_first=channel_first)
    with torch.enable_grad():
        inputs = (z.requires_grad_(), codebook.requires_grad_())
        result = functional.quantize(*inputs, channel_first=channel_first)
        grads = (torch.zeros_like(result.quantized), torch.zeros_like(result.loss))
        torch.autograd.grad((result.quantized, result.loss), inputs, grads)


def _first_of_each_host_first(
    call: Callable[[], None],
    compiles: bool,
    device: torch.device,
    group: "dist.ProcessGroup | None",
) -> None:
    """Runs ``call`` in the first process of each host, then in the others.

    A process that fails tells the others, so that they do not wait: each takes part in all
    collectives even after an error.
    """
    rank = dist.get_rank(group)
    mine = json.dumps([socket.gethostname(), compiles])
    hosts = [json.loads(text) for text in texts_of_all(mine, device, group)]
    is_first = hosts.index([socket.gethostname(), compiles]) == rank
    for is_my_turn in (is_first, not is_first):
        failure = ""
        if is_my_turn:
            try:
                call()
            except Exception as error:
                failure = f"{type(error).__name__}: {error}"
        failures = texts_of_all(json.dumps(failure), device, group)
        named = [
            f"process {number}: {json.loads(text)}"
            for number, text in enumerate(failures)
            if json.loads(text)
        ]
        if named:
            raise RuntimeError(f"warm_up failed in {'; in '.join(named)}")
