"""QINCo: codes that depend on what the stages before have chosen."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class ImplicitCodebook(nn.Module):
    """An MLP that gives every vector codes of its own.

    Huijben et al., arXiv 2401.14732, section 3.1. By definition it makes N x K codes of D numbers.

    Args:
        dim: D.
        dim_hidden: width of the layers, D unless given.
        depth: number of residual layers.
        l2norm_output: codes have unit length.
    """

    def __init__(
        self, dim: int, dim_hidden: int | None = None, depth: int = 4, l2norm_output: bool = False
    ):
        super().__init__()
        hidden = dim if dim_hidden is None else dim_hidden
        self.proj_in = nn.Linear(2 * dim, dim)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim))
            for _ in range(depth)
        )
        self.l2norm_output = l2norm_output

    def forward(self, codes: Tensor, *, condition: Tensor) -> Tensor:
        """codes [C, K, D], condition [B, N, D], quantized so far -> [C, B, N, K, D]."""
        books, count, dim = codes.shape
        shape = (books, *condition.shape[:2], count, dim)
        x = torch.cat(
            [condition[None, :, :, None].expand(shape), codes[:, None, None].expand(shape)], dim=-1
        )
        return self._transformed(x)

    def of_chosen(self, codes: Tensor, condition: Tensor) -> Tensor:
        """Of one code for each vector only: both [..., D] -> [..., D]."""
        return self._transformed(torch.cat([condition, codes], dim=-1))

    def _transformed(self, x: Tensor) -> Tensor:
        x = self.proj_in(x)
        for layer in self.layers:
            x = layer(x) + x
        return functional.normalize(x, dim=-1) if self.l2norm_output else x
