"""Judges in float64 the codes of stages whose projections were composed."""

import torch
from torch import Tensor

from vqvae_fast import ResidualVQ
from vqvae_fast.formulas import directions

UNIT = 2.0**-24  # half an ulp of 1 in float32


@torch.no_grad()
def excess(module: ResidualVQ, x: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """By how much codes are farther than the nearest in float64, and what rounding may add.

    The vector of a stage is the sum of the products of C channels, of biases, and of the codes of
    the stages before it with D of their dimensions each. It has so many roundings in float32, of
    numbers no larger than the sum of all magnitudes; two more for what is composed beforehand. As
    for the op, that moves the difference of two distances by twice as much times the distance
    between the codes, and the search may add 1e-6.

    Returns:
        [N, Q] each.
    """
    rows = x.reshape(-1, x.shape[-1]).double()
    found = indices.reshape(len(rows), len(module.layers))
    left, size = rows, rows.abs()
    all_excess, all_allowed = [], []
    for number, stage in enumerate(module.layers):
        into, out, book = stage.project_in, stage.project_out, stage.codebook.double()
        bias = torch.zeros(1).double() if into.bias is None else into.bias.double()
        z = left @ into.weight.double().t() + bias
        dim, channels = into.weight.shape
        roundings = channels + number * (dim + 2) + 4
        magnitudes = size @ into.weight.double().abs().t() + bias.abs()
        error = roundings * UNIT * magnitudes.norm(dim=1)
        compared = book
        if stage.cosine_search:
            compared = directions(stage.codebook).double()
            length = z.norm(dim=1)
            z, error = z / length[:, None], 2 * error / length + UNIT
        distance = (z[:, None] - compared).square().sum(-1)
        nearest, best = distance.min(dim=1)
        chosen = found[:, number]
        apart = (compared[chosen] - compared[best]).norm(dim=1)
        all_excess.append(distance.gather(1, chosen[:, None])[:, 0] - nearest)
        all_allowed.append(2 * error * apart + 1e-6 * nearest)
        taken = book[chosen] @ out.weight.double().t()
        size = size + book[chosen].abs() @ out.weight.double().abs().t()
        if out.bias is not None:
            taken, size = taken + out.bias.double(), size + out.bias.double().abs()
        left = left - taken
    return torch.stack(all_excess, dim=1), torch.stack(all_allowed, dim=1)
