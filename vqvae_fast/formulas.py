"""Formulas that the backends, the gradients and the modules share."""

import torch
from torch import Tensor

from vqvae_fast.dtypes import distance_dtype


def flat_indices(indices: Tensor, codebook: Tensor) -> Tensor:
    """indices of separate books [H, ...] as rows of the books laid end to end [H * K].

    A negative index stays negative: -1 of the second book is not the last code of the first.
    """
    if codebook.dim() == 2 or codebook.shape[0] == 1:
        return indices
    heads, num_codes = codebook.shape[:2]
    offset = torch.arange(heads, device=indices.device) * num_codes
    rows = indices + offset.view(-1, *[1] * (indices.dim() - 1))
    return torch.where(indices < 0, -1, rows)


def smoothed_size(
    cluster_size: Tensor,
    eps: float,
    *,
    total: Tensor | None = None,
    num_codes: int | None = None,
) -> Tensor:
    """Smooth cluster_size [..., K] so that none is zero (arXiv 1711.00937, appendix A.1).

    For a part of a codebook, ``total`` [..., 1] and ``num_codes`` are those of the whole.
    """
    total = cluster_size.sum(dim=-1, keepdim=True) if total is None else total
    num_codes = cluster_size.shape[-1] if num_codes is None else num_codes
    smoothing = total / (total + num_codes * eps)
    return ((cluster_size + eps) * smoothing).clamp(min=torch.finfo(total.dtype).tiny)


def average_in_(average: Tensor, new: Tensor, share: Tensor | float) -> None:
    """Move an average towards a batch's value by a share of the way: 1 - decay."""
    average.lerp_(new.to(average.dtype), share)


def write_means_(codebook: Tensor, average: Tensor, size: Tensor) -> None:
    """Write average [..., K, D] over the smoothed size [..., K] into the codes [..., K, D].

    The division goes straight into the codes: no temporary is as large as they are.
    """
    torch.div(average, size[..., None], out=codebook)


def rotated_gradient(grad: Tensor, z: Tensor, q: Tensor) -> Tensor:
    """The gradient to q [..., d] as the rotation trick passes it to z [..., d].

    Fifty et al., arXiv 2410.06424, section 4.2: :func:`vqvae_fast.autograd.estimators.rotate_to`.
    """
    (u, length_z), (v, length_q) = _direction(z), _direction(q)
    w, _ = _direction(u + v)
    rotated = torch.addcmul(grad, w, (w * grad).sum(dim=-1, keepdim=True), value=-2)
    rotated.addcmul_(u, (v * grad).sum(dim=-1, keepdim=True), value=2)
    return rotated.mul_(length_q / _divisor(length_z))


def _direction(x: Tensor) -> tuple[Tensor, Tensor]:
    """x / |x| and |x|."""
    length = x.norm(dim=-1, keepdim=True)
    return x / _divisor(length), length


def _divisor(length: Tensor) -> Tensor:
    """The length, but not less than 1e-6, so that no vector is divided by zero.

    The number is a literal: a global one would be an input to torch.compile(dynamic=True), which
    does not find it in the second backward pass that it traces.
    """
    return length.clamp(min=1e-6)


def directions(x: Tensor) -> Tensor:
    """Return x / |x|, [..., D], between which a search by the cosine measures distances.

    It is computed in float64 and returned in float32 (float64 for float64 input). A zero vector has
    no direction and becomes NaN.
    """
    wide = x.double()
    wide = wide / wide.abs().amax(dim=-1, keepdim=True)  # no square over- or underflows
    unit: Tensor = wide / torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return unit.to(distance_dtype(x.dtype))
