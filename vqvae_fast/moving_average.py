"""The steps by which a codebook follows moving averages of the vectors that choose its codes.

Van den Oord et al., arXiv 1711.00937, appendix A.1. The op ``moving_average_`` takes all of them at
once. Quantizers that do something in between, such as adding what other processes have, take them
one by one.
"""

import torch
from torch import Tensor


def average_in_(average: Tensor, new: Tensor, share: Tensor | float) -> None:
    """Move an average towards a batch's value by a share of the way: 1 - decay."""
    average.lerp_(new.to(average.dtype), share)


def smoothed_size(
    cluster_size: Tensor,
    eps: float,
    *,
    total: Tensor | None = None,
    num_codes: int | None = None,
) -> Tensor:
    """Laplace-smooth cluster_size [..., K] so that none is zero.

    For a part of a codebook, ``total`` [..., 1] and ``num_codes`` are those of the whole.
    """
    total = cluster_size.sum(dim=-1, keepdim=True) if total is None else total
    num_codes = cluster_size.shape[-1] if num_codes is None else num_codes
    smoothing = total / (total + num_codes * eps)
    return ((cluster_size + eps) * smoothing).clamp(min=torch.finfo(total.dtype).tiny)


def write_means_(codebook: Tensor, average: Tensor, size: Tensor) -> None:
    """Write average [..., K, D] over the smoothed size [..., K] into the codes [..., K, D].

    The division goes straight into the codes: no temporary is as large as they are.
    """
    torch.div(average, size[..., None], out=codebook)
