"""The encoder, from images to feature maps."""

from torch import Tensor, nn

from vqvae_fast.models.residual import ResidualStack


def strided_widths(h_dim: int, downsampling: int) -> list[int]:
    """Channels after each halving: half of h_dim after the first of several, then h_dim."""
    return [h_dim // 2 if i == 0 and downsampling > 1 else h_dim for i in range(downsampling)]


class Encoder(nn.Module):
    """Strided 4x4 convolutions that halve the image, a 3x3 convolution, a residual stack.

    Van den Oord et al., arXiv 1711.00937, section 4.1.

    Args:
        in_dim: channels of the image.
        h_dim: channels of the feature map.
        n_res_layers: residual layers.
        res_h_dim: channels inside a residual layer.
        downsampling: number of halvings.
        shared_residual: as ``shared`` in :class:`ResidualStack`.
        relu_skip: as in :class:`ResidualLayer`.
    """

    def __init__(
        self,
        in_dim: int,
        h_dim: int,
        n_res_layers: int,
        res_h_dim: int,
        *,
        downsampling: int = 2,
        shared_residual: bool = False,
        relu_skip: bool = False,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for width in strided_widths(h_dim, downsampling):
            layers += [nn.Conv2d(in_dim, width, kernel_size=4, stride=2, padding=1), nn.ReLU()]
            in_dim = width
        self.conv_stack = nn.Sequential(
            *layers,
            nn.Conv2d(in_dim, h_dim, kernel_size=3, padding=1),
            ResidualStack(
                h_dim, res_h_dim, n_res_layers, shared=shared_residual, relu_skip=relu_skip
            ),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_dim, H, W] -> [B, h_dim, H / 2**downsampling, W / 2**downsampling]."""
        features: Tensor = self.conv_stack(x)
        return features
