"""The VQ-VAE of the reference article, rebuilt in plain PyTorch to train against.

It is written from the article (arXiv 1711.00937) and from a recorded step of the public
implementation. It uses nothing of this package and is no copy of that implementation. Its
differences from this package's model are kept on purpose, because the benchmark measures them:

* one residual layer serves every place of a stack, so its weights are shared;
* the residual layer's first ReLU works in place, so the skip connection adds to relu(x);
* the codebook starts uniform in (-1/K, 1/K), learns by gradient, and ``beta`` weighs its term;
* the search forms all N x K distances and a one-hot matrix [N, K] that is multiplied out.

Submodule names are those of the public checkpoints, so that one loads here.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class _ResidualLayer(nn.Module):
    """A residual layer: relu, 3x3 to the inner width, relu, 1x1 back; adds relu of the input."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.res_block = nn.Sequential(
            nn.ReLU(inplace=True),
            nn.Conv2d(width, inner, 3, padding=1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, width, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to x [B, width, h, w], which its relu overwrites, as in the recorded step."""
        branch: Tensor = self.res_block(x)
        return branch + x


class _ResidualStack(nn.Module):
    """One layer applied several times, then a relu."""

    def __init__(self, width: int, inner: int, layers: int) -> None:
        super().__init__()
        self.stack = nn.ModuleList([_ResidualLayer(width, inner)] * layers)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, width, h, w]."""
        for layer in self.stack:
            x = layer(x)
        return F.relu(x)


class _Encoder(nn.Module):
    """Two strided convolutions halve the image twice; a third and the residual stack follow."""

    def __init__(self, width: int, inner: int, layers: int) -> None:
        super().__init__()
        self.conv_stack = nn.Sequential(
            nn.Conv2d(3, width // 2, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            _ResidualStack(width, inner, layers),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, 3, H, W] to [B, width, H/4, W/4]."""
        features: Tensor = self.conv_stack(x)
        return features


class _Decoder(nn.Module):
    """The mirror image of the encoder, with transposed convolutions."""

    def __init__(self, dim: int, width: int, inner: int, layers: int) -> None:
        super().__init__()
        self.inverse_conv_stack = nn.Sequential(
            nn.ConvTranspose2d(dim, width, 3, padding=1),
            _ResidualStack(width, inner, layers),
            nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width // 2, 3, 4, stride=2, padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Map z [B, dim, h, w] to [B, 3, 4h, 4w]."""
        image: Tensor = self.inverse_conv_stack(z)
        return image


class ReferenceQuantized(NamedTuple):
    """The results of the reference's quantizer; indices [N] in the order batch, height, width."""

    loss: Tensor
    quantized: Tensor
    indices: Tensor


class _Quantizer(nn.Module):
    """A quantizer that computes all distances, a one-hot matrix and its product with the codes."""

    def __init__(self, num_codes: int, dim: int, beta: float) -> None:
        super().__init__()
        self.beta = beta
        self.embedding = nn.Embedding(num_codes, dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / num_codes, 1.0 / num_codes)

    def forward(self, z: Tensor) -> ReferenceQuantized:
        """Quantize z [B, dim, h, w]."""
        codes = self.embedding.weight
        channel_last = z.permute(0, 2, 3, 1)
        rows = channel_last.reshape(-1, codes.shape[1])
        squared = rows.square().sum(dim=1, keepdim=True) + codes.square().sum(dim=1)
        indices = (squared - 2.0 * rows @ codes.T).argmin(dim=1)
        one_hot = F.one_hot(indices, len(codes)).to(codes.dtype)
        quantized = (one_hot @ codes).view(channel_last.shape)
        loss = F.mse_loss(channel_last, quantized.detach()) + self.beta * F.mse_loss(
            quantized, channel_last.detach()
        )
        straight_through = channel_last + (quantized - channel_last).detach()
        return ReferenceQuantized(loss, straight_through.permute(0, 3, 1, 2), indices)


class ReferenceOutput(NamedTuple):
    """One forward pass of the whole model."""

    x_hat: Tensor
    embedding_loss: Tensor
    indices: Tensor


class ReferenceVQVAE(nn.Module):
    """Encoder, 1x1 convolution, quantizer, decoder.

    Args:
        width: channels of the encoder and decoder.
        inner: channels inside a residual layer.
        layers: residual layers of a stack.
        num_codes: K.
        dim: D.
        beta: the weight of the codebook's term of the loss. In the article's equation 3 it weighs
            the commitment; the public implementation differs.
    """

    def __init__(
        self,
        width: int = 128,
        inner: int = 32,
        layers: int = 2,
        num_codes: int = 512,
        dim: int = 64,
        beta: float = 0.25,
    ) -> None:
        super().__init__()
        self.encoder = _Encoder(width, inner, layers)
        self.pre_quantization_conv = nn.Conv2d(width, dim, 1)
        self.vector_quantization = _Quantizer(num_codes, dim, beta)
        self.decoder = _Decoder(dim, width, inner, layers)

    def forward(self, x: Tensor) -> ReferenceOutput:
        """Reconstruct x [B, 3, H, W]; H and W are multiples of 4."""
        loss, quantized, indices = self.vector_quantization(
            self.pre_quantization_conv(self.encoder(x))
        )
        return ReferenceOutput(self.decoder(quantized), loss, indices)


def reference_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Return Adam with amsgrad at 3e-4, as the reference trains."""
    return torch.optim.Adam(model.parameters(), lr=3e-4, amsgrad=True)
