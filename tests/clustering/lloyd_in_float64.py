"""Lloyd's algorithm in plain PyTorch and float64, and data to cluster."""

import torch
from torch import Tensor


def lloyd(
    x: Tensor, codes: Tensor, rounds: int, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, float]:
    """Codes [K, D], labels [N] and the inertia after some rounds; a code without rows stays."""
    x, codes = x.double(), codes.double().clone()
    weights = torch.ones(len(x), dtype=torch.float64) if weights is None else weights.double()
    for _ in range(rounds):
        labels = torch.cdist(x, codes).argmin(1)
        for code in labels.unique():
            chosen = labels == code
            total = weights[chosen].sum()
            if total > 0:
                codes[code] = (weights[chosen, None] * x[chosen]).sum(0) / total
    squares = (x[:, None] - codes).square().sum(2) if len(x) * len(codes) < 2e6 else None
    squares = torch.cdist(x, codes).square() if squares is None else squares
    nearest = squares.min(1)
    return codes, nearest.indices, float((weights * nearest.values).sum())


def blobs(clusters: int, each: int, dim: int, spread: float = 0.05, seed: int = 0) -> Tensor:
    """Rows [clusters * each, dim] in tight clusters, shuffled."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, dim, generator=g) * 3
    rows = centres.repeat(each, 1)
    rows += spread * torch.randn(rows.shape, generator=g)
    return rows[torch.randperm(len(rows), generator=g)]


def gaussian(rows: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))
