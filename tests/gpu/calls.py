"""The ops with inputs that are ready to run: what graphs, streams and the like are tested with."""

from collections.abc import Callable

import torch
from torch import Tensor

import vqvae_fast

Call = Callable[..., tuple[Tensor, ...]]


def quantize_backward(z: Tensor, codebook: Tensor) -> tuple[Tensor, ...]:
    """The search, and the gradients of what it gave."""
    indices, _ = torch.ops.vqvae_fast.nearest_code(z, codebook)
    loss = torch.full((), 3.0, dtype=torch.float32, device=z.device)
    return torch.ops.vqvae_fast.quantize_backward(z * 2, loss, z, codebook, indices, 0.25, 1.0)


def segment_sum(z: Tensor, codebook: Tensor) -> tuple[Tensor, ...]:
    """The sums of the rows that chose each code: what the EMA update needs."""
    indices, _ = torch.ops.vqvae_fast.nearest_code(z, codebook)
    return tuple(vqvae_fast.functional.code_statistics(z, indices, codebook))


# Each takes z [N, D] and codebook [K, D] in float32 and gives tensors.
CALLS: dict[str, Call] = {
    "nearest_code": lambda z, codebook: tuple(vqvae_fast.nearest_code(z, codebook)),
    "quantize": lambda z, codebook: tuple(vqvae_fast.quantize(z, codebook)),
    "segment_sum": segment_sum,
    "quantize_backward": quantize_backward,
}


def same(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    """Equal bits, NaNs included."""
    return all(
        torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))
        for a, b in zip(first, second, strict=True)
    )
