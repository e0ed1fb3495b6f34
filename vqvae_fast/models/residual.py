"""Residual layers of the encoder and the decoder."""

import torch
from torch import Tensor, nn


class ResidualLayer(nn.Module):
    """ReLU, 3x3 convolution, ReLU, 1x1 convolution, and a skip connection around them.

    Van den Oord et al., arXiv 1711.00937, section 4.1; without biases, as in the reference
    implementation.

    Args:
        dim: channels of the input and the output.
        hidden_dim: channels between the two convolutions.
        relu_skip: the skip connection carries relu(x), not x. The reference does so, because its
            first ReLU works in place.
    """

    def __init__(self, dim: int, hidden_dim: int, *, relu_skip: bool = False):
        super().__init__()
        self.relu_skip = relu_skip
        self.res_block = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(dim, hidden_dim, kernel_size=3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(hidden_dim, dim, kernel_size=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [B, dim, H, W] -> the same shape."""
        skip = torch.relu(x) if self.relu_skip else x
        # relu(relu(x)) is relu(x): the block may start from either.
        residual: Tensor = self.res_block(skip)
        return skip + residual


class ResidualStack(nn.Module):
    """Residual layers one after the other, and a last ReLU.

    Args:
        dim: channels of the input and the output.
        hidden_dim: channels inside each layer.
        n_layers: number of layers, 0 or more.
        shared: one layer is used ``n_layers`` times, so that all share its weights, as in the
            reference implementation; otherwise each layer has its own (the article).
        relu_skip: as in :class:`ResidualLayer`.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        n_layers: int,
        *,
        shared: bool = False,
        relu_skip: bool = False,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(n_layers):
            reuse = shared and index > 0
            layers.append(
                layers[0] if reuse else ResidualLayer(dim, hidden_dim, relu_skip=relu_skip)
            )
        self.stack = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, dim, H, W] -> the same shape, no element negative."""
        for layer in self.stack:
            x = layer(x)
        return torch.relu(x)
