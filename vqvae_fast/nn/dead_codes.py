"""Dead codes: codes that (almost) no vector chooses start again where there are vectors."""

import torch
from torch import Tensor

from vqvae_fast.nn.ema import CodeUsage
from vqvae_fast.nn.sampling import stratified_positions, take_rows


@torch.no_grad()
def replace_dead_codes(z: Tensor, codebook: Tensor, usage: CodeUsage, threshold: float) -> None:
    """Put every code whose moving usage is below ``threshold`` on a random vector of the batch.

    The code's averages are set to those of a code at its new place that is chosen just often
    enough. Without that the next EMA write would carry it back to where it died; and with a larger
    size it would follow its new vectors more slowly, and be tried elsewhere later, if none choose
    it. All codes are computed and the dead ones selected: nothing waits for the device, and it
    compiles.

    Args:
        z: [..., D], the batch's vectors, at least one; any strides.
        codebook: [K, D], changed in place.
        usage: its moving averages, changed in place.
        threshold: in vectors per batch.
    """
    dead = usage.cluster_size < threshold
    rank = dead.cumsum(0) - 1
    count = z.shape[:-1].numel()
    positions = stratified_positions(rank, dead.sum().clamp(min=1), count)
    replacements = take_rows(z, positions).to(codebook.dtype)
    usage.reset(dead, replacements, threshold)
    codebook.copy_(torch.where(dead[:, None], replacements, codebook))
