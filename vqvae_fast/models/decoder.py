"""The decoder, from quantized feature maps to images."""

from torch import Tensor, nn

from vqvae_fast.models.encoder import strided_widths
from vqvae_fast.models.residual import ResidualStack


class Decoder(nn.Module):
    """The encoder in reverse: a 3x3 layer, a residual stack, transposed 4x4 convolutions.

    Van den Oord et al., arXiv 1711.00937, section 4.1. The 3x3 layer is a transposed
    convolution too, as in the reference implementation: the same map, its weights stored turned.

    Args:
        in_dim: channels of the quantized feature map, the dimension of a code.
        h_dim: channels inside.
        n_res_layers: residual layers.
        res_h_dim: channels inside a residual layer.
        out_channels: channels of the image.
        upsampling: number of doublings.
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
        out_channels: int = 3,
        upsampling: int = 2,
        shared_residual: bool = False,
        relu_skip: bool = False,
    ):
        super().__init__()
        widths = [*reversed(strided_widths(h_dim, upsampling)), out_channels]
        layers: list[nn.Module] = []
        for index in range(upsampling):
            layers += [nn.ReLU()] if index > 0 else []
            layers.append(
                nn.ConvTranspose2d(
                    widths[index], widths[index + 1], kernel_size=4, stride=2, padding=1
                )
            )
        self.inverse_conv_stack = nn.Sequential(
            nn.ConvTranspose2d(in_dim, h_dim, kernel_size=3, padding=1),
            ResidualStack(
                h_dim, res_h_dim, n_res_layers, shared=shared_residual, relu_skip=relu_skip
            ),
            *layers,
        )

    def forward(self, z_q: Tensor) -> Tensor:
        """z_q [B, in_dim, h, w] -> [B, out_channels, h * 2**upsampling, w * 2**upsampling]."""
        image: Tensor = self.inverse_conv_stack(z_q)
        return image
