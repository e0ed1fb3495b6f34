"""The VQ-VAE and its parts, in pure PyTorch around the quantizer."""

from vqvae_fast.models.decoder import Decoder
from vqvae_fast.models.encoder import Encoder
from vqvae_fast.models.residual import ResidualLayer, ResidualStack
from vqvae_fast.models.vqvae import VQVAE, VQVAEOutput

__all__ = ["VQVAE", "Decoder", "Encoder", "ResidualLayer", "ResidualStack", "VQVAEOutput"]
