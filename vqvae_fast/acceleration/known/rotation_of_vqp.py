"""What vector-quantize-pytorch's estimators return for vectors without a length or a direction."""

import torch
from torch import Tensor, nn

from vqvae_fast.autograd.gather import take_codes

# The library does not divide by lengths below this.
_SHORT = 1e-6


def as_vectors_without_direction_get(
    z: Tensor, codes: Tensor, quantized: Tensor, indices: Tensor, *, rotates: bool
) -> Tensor:
    """Return quantized vectors with the library's values where a vector has no direction.

    For short vectors, as in padding with zeros, its rotation trick does not return the code, but
    zeros or something between. A NaN or an infinity stays one, so that it is not overlooked. The
    gradient stays that of ``quantized``.

    Args:
        z: [..., d], without a gradient.
        codes: [K, d], or [C, K, d] for z [C, ..., d].
        quantized: [..., d].
        indices: [...].
        rotates: False for the straight-through estimator.
    """
    length = torch.linalg.vector_norm(z, dim=-1)
    has_direction = (length >= _SHORT) & (length < torch.inf)
    if not torch.compiler.is_compiling() and has_direction.all():
        return quantized
    given = take_codes(codes.detach(), indices)
    given = _rotated(z, given) if rotates else z + (given - z)
    # Autograd saves nothing for it, so a checkpointed step may have such vectors only when it is
    # computed again.
    return quantized + torch.where(has_direction[..., None], 0, given - quantized.detach())


def _rotated(z: Tensor, q: Tensor) -> Tensor:
    """The vectors z [..., d], rotated and scaled to the codes q; arXiv 2410.06424, section 4.2."""
    lengths = [torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (z, q)]
    u, v = (x / length.clamp(min=_SHORT) for x, length in zip((z, q), lengths, strict=True))
    w = nn.functional.normalize(u + v, dim=-1, eps=_SHORT)
    rotated: Tensor = z - 2 * (z * w).sum(dim=-1, keepdim=True) * w
    rotated = rotated + 2 * (z * u).sum(dim=-1, keepdim=True) * v
    rotated = rotated * (lengths[1] / lengths[0].clamp(min=_SHORT))
    return rotated
