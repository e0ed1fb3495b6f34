"""Dead codes: codes that (almost) no vector chooses start again where there are vectors."""

import torch
from torch import Tensor

from vqvae_fast.distributed import each_from_its_turn
from vqvae_fast.nn.codebook.averages import Averages, put
from vqvae_fast.nn.codebook.ema import CodeUsage
from vqvae_fast.nn.codebook.sampling import random_rows, shuffled


@torch.no_grad()
def replace_dead_codes(
    z: Tensor, codebook: Tensor, usage: CodeUsage, threshold: float, *, synced: bool = False
) -> None:
    """Put every code whose moving usage is below ``threshold`` on a random vector of the batch.

    The code's averages are then those of a code that is chosen just often enough: with a larger
    size it would follow its new vectors more slowly, and be tried elsewhere later, if none choose
    it.

    Args:
        z: [..., D], the batch's vectors; any strides. Without any, nothing moves.
        codebook: [K, D], changed in place.
        usage: its moving averages, changed in place.
        threshold: in vectors per batch.
        synced: all processes have this codebook, and the vectors of all are drawn from, in turn.
            A code whose turn falls to a process without vectors waits for the next batch.
    """
    count = z.shape[:-1].numel()
    dead = usage.averages.dead(threshold)
    draws = torch.rand(dead.shape, device=z.device)  # as many however it goes on
    compiling = torch.compiler.is_compiling()
    if not compiling and (synced or not z.is_cuda):
        which = dead.nonzero()[:, 0]
        rank, strata = torch.arange(len(which), device=z.device), which.new_tensor(len(which))
        draws = draws[which]
    else:
        # All codes are computed and the dead ones selected: nothing waits for the device, and it
        # compiles.
        which, rank, strata = dead, dead.cumsum(0) - 1, dead.sum()
    if not len(which) or not (count or synced):
        return
    codes = random_rows(z, rank, strata.clamp(min=1), draws).to(codebook.dtype)
    if synced:
        available = torch.full((), count > 0, device=z.device)
        codes, found = each_from_its_turn(codes, available, turns=rank)
        if compiling:
            which = which & found
        else:
            which, codes = which[found], codes[found]
    start_anew(codebook, usage.averages, which, codes, threshold)


def start_anew(
    codebook: Tensor, averages: Averages, which: Tensor, codes: Tensor, size: float
) -> None:
    """Put dead codes at new places, with the averages of codes that have always been there.

    Without those the next write of the averages would carry the codes back to where they died.

    Args:
        codebook: [..., K, d], changed in place.
        averages: of its codes, changed in place.
        which: bool [..., K], a mask; or int64 [n], distinct codes of [K, d].
        codes: their new values, [..., K, d] or [n, d].
        size: their new cluster size.
    """
    averages.reset(which, codes, size)
    put(codebook, which, codes)


def shuffled_replacements(
    rows: Tensor, valid: Tensor, dead: Tensor, *, synced: bool
) -> tuple[Tensor, Tensor]:
    """Random vectors for dead codes, drawn by a permutation as vector-quantize-pytorch draws them.

    Args:
        rows: [n, d], the batch's vectors.
        valid: bool [n], which of them count.
        dead: bool [K].
        synced: the vectors of all processes are drawn from, in turn.

    Returns:
        Which codes move now, bool [K], and to where, [K, d].
    """
    order, count = shuffled(valid)
    rank = dead.cumsum(0) - 1
    if len(dead) > len(rows) or synced:
        # More dead codes than vectors: distinct vectors for some, and another time the others.
        start = (torch.rand((), device=rows.device) * dead.sum()).long()
        rank = (rank + start) % dead.sum().clamp(min=1)
    moved = dead & (rank < count)
    codes = rows.new_zeros(len(dead), rows.shape[-1])
    if len(rows):
        codes = rows[order[rank.clamp(0, len(rows) - 1)]]
    if synced:
        codes, found = each_from_its_turn(codes, count > 0)
        moved = dead & found
    return moved, codes
