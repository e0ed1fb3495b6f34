"""QINCo: codes that depend on what the stages before have chosen."""

from torch import Tensor, nn
from torch.nn import functional


class ImplicitCodebook(nn.Module):
    """An MLP that gives every vector codes of its own.

    Huijben et al., arXiv 2401.14732, section 3.1. By definition it makes N x K codes of D numbers.

    Args:
        dim: D, the length of a vector.
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
        return self._transformed(codes[:, None, None], condition[None, :, :, None])

    def of_chosen(self, codes: Tensor, condition: Tensor) -> Tensor:
        """Of one code for each vector only: both [..., D] -> [..., D]."""
        return self._transformed(codes, condition)

    def _transformed(self, codes: Tensor, condition: Tensor) -> Tensor:
        """In the weights' dtype, which is not the codes' in a model of half precision."""
        weight = self.proj_in.weight
        for_condition, for_codes = weight.tensor_split(2, dim=-1)
        # Both halves of the first layer before they meet: N + K products, not N x K.
        x = functional.linear(condition.to(weight.dtype), for_condition) + functional.linear(
            codes.to(weight.dtype), for_codes, self.proj_in.bias
        )
        for layer in self.layers:
            x = layer(x) + x
        x = x.to(codes.dtype)
        return functional.normalize(x, dim=-1) if self.l2norm_output else x
