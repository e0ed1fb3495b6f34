"""Losses on the codes themselves."""

import torch
from torch import Tensor
from torch.nn import functional


def orthogonal_loss(
    codes: Tensor, active: Tensor | None = None, max_codes: int | None = None
) -> Tensor:
    """Return how far the codes are from orthogonal: mean squared cosine of all pairs, minus 1/K.

    Shin et al., arXiv 2112.00384, eq. 2. The K x K cosines are never formed: with unit codes as
    the rows of E, the sum of their squares is that of E^T E, which is d x d.

    Args:
        codes: [C, K, d].
        active: bool [K], the codes that count; None for all.
        max_codes: if more codes count, a random choice of this many does.

    Returns:
        0-d, with a gradient to the codes.
    """
    unit = functional.normalize(codes, dim=-1, eps=1e-6)
    count: Tensor | int = codes.shape[1]
    if max_codes is not None and codes.shape[1] > max_codes:
        if active is None:
            chosen = torch.randperm(codes.shape[1], device=codes.device)[:max_codes]
            unit, count = unit[:, chosen], max_codes
        else:
            keys = torch.where(active, torch.rand(active.shape, device=active.device), -1.0)
            least = keys.topk(max_codes).values[-1].clamp(min=0)
            active = keys >= least
    if active is not None:
        unit, count = unit * active[:, None], active.sum().clamp(min=1)
    squares = (unit.mT @ unit).square().sum()
    return squares / (codes.shape[0] * count**2) - 1 / count


def masked_mean(errors: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of errors [..., d] over the rows in mask [...]; 0-d, 0 if there are none."""
    if mask is None:
        return errors.sum() / max(errors.numel(), 1)
    total = (errors * mask[..., None]).sum()
    return total / (mask.sum() * errors.shape[-1]).clamp(min=1)
