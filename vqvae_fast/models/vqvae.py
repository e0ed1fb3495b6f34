"""The VQ-VAE of van den Oord et al., arXiv 1711.00937."""

from collections.abc import Mapping
from os import PathLike
from typing import Any, NamedTuple

from torch import Tensor, nn

from vqvae_fast.checkpoints.formats.reference_vqvae import read_reference_checkpoint
from vqvae_fast.models.decoder import Decoder
from vqvae_fast.models.encoder import Encoder
from vqvae_fast.nn import Freezable, Quantizer
from vqvae_fast.recipes import quantizer_classes


class VQVAEOutput(NamedTuple):
    """Result of :meth:`VQVAE.forward_with_indices`."""

    x_hat: Tensor
    embedding_loss: Tensor
    perplexity: Tensor
    indices: Tensor


class VQVAE(Freezable):
    """Encoder, 1x1 convolution, vector quantizer, decoder.

    With the defaults: [B, 3, 32, 32] -> encoder [B, 128, 8, 8] -> 1x1 convolution [B, 64, 8, 8]
    -> nearest of 512 codes -> decoder [B, 3, 32, 32]. Submodules and parameters bear the
    reference implementation's names. ``shared_residual=True, relu_skip=True, legacy=True`` is the
    reference implementation's model; the defaults are the article's.

    Args:
        h_dim: channels of the encoder and the decoder; even.
        res_h_dim: channels inside a residual layer.
        n_res_layers: residual layers of the encoder, and of the decoder.
        n_embeddings: K, number of codes.
        embedding_dim: D, dimension of a code.
        beta: weight of the commitment term; with ``legacy``, of the codebook term.
        in_channels: channels of the image.
        downsampling: number of halvings between image and codes, at least 1.
        legacy: the reference's loss, see :class:`vqvae_fast.nn.VectorQuantizer`.
        shared_residual: all residual layers of a stack share one layer's weights.
        relu_skip: a residual layer's skip connection carries relu(x), not x.
        l2_norm: scale the vectors of the 1x1 convolution to the length sqrt(embedding_dim) before
            they are quantized, as Yu et al. do (arXiv 2110.04627, section 3.2). This is for large
            codebooks, whose codes lie where the encoder put its vectors some steps ago: an encoder
            that cannot change the vectors' lengths does not leave the codes behind.
        quantizer: further arguments of the quantizer, by name: those of
            :class:`vqvae_fast.nn.VectorQuantizer` (``learning``, ``kmeans_init``, ...), or of
            another class of :mod:`vqvae_fast.recipes`, whose name stands under ``"class"``.

    Attributes:
        config: the arguments: ``VQVAE(**model.config)`` builds such a model again.

    Raises:
        ValueError: an argument is out of range.
        TypeError: ``quantizer`` has a name that the quantizer does not know, or ``legacy`` is set
            and the quantizer's class has no such loss.
    """

    def __init__(
        self,
        h_dim: int = 128,
        res_h_dim: int = 32,
        n_res_layers: int = 2,
        n_embeddings: int = 512,
        embedding_dim: int = 64,
        beta: float = 0.25,
        *,
        in_channels: int = 3,
        downsampling: int = 2,
        legacy: bool = False,
        shared_residual: bool = False,
        relu_skip: bool = False,
        l2_norm: bool = False,
        quantizer: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        for name, number, least in (
            ("h_dim", h_dim, 2),
            ("res_h_dim", res_h_dim, 1),
            ("n_res_layers", n_res_layers, 0),
            ("in_channels", in_channels, 1),
            ("downsampling", downsampling, 1),
        ):
            if not isinstance(number, int) or number < least:
                raise ValueError(f"{name} must be an integer, at least {least}, got {number!r}")
        if h_dim % 2:
            raise ValueError(f"h_dim must be even, got {h_dim}")
        self.config: dict[str, Any] = {
            "h_dim": h_dim,
            "res_h_dim": res_h_dim,
            "n_res_layers": n_res_layers,
            "n_embeddings": n_embeddings,
            "embedding_dim": embedding_dim,
            "beta": beta,
            "in_channels": in_channels,
            "downsampling": downsampling,
            "legacy": legacy,
            "shared_residual": shared_residual,
            "relu_skip": relu_skip,
            "l2_norm": l2_norm,
            "quantizer": dict(quantizer or {}),
        }
        self.encoder = Encoder(
            in_channels,
            h_dim,
            n_res_layers,
            res_h_dim,
            downsampling=downsampling,
            shared_residual=shared_residual,
            relu_skip=relu_skip,
        )
        self.pre_quantization_conv = nn.Conv2d(h_dim, embedding_dim, kernel_size=1)
        self.vector_quantization = _quantizer(
            self.config["quantizer"], n_embeddings, embedding_dim, beta, legacy
        )
        self.decoder = Decoder(
            embedding_dim,
            h_dim,
            n_res_layers,
            res_h_dim,
            out_channels=in_channels,
            upsampling=downsampling,
            shared_residual=shared_residual,
            relu_skip=relu_skip,
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct images.

        Args:
            x: [B, in_channels, H, W]; H and W multiples of 2**downsampling.

        Returns:
            ``(embedding_loss, x_hat, perplexity)`` as the reference returns them; x_hat like x.

        Raises:
            ValueError: x has another shape.
        """
        output = self.forward_with_indices(x)
        return output.embedding_loss, output.x_hat, output.perplexity

    def forward_with_indices(self, x: Tensor) -> VQVAEOutput:
        """As :meth:`forward`, with the indices [B, H / 2**downsampling, W / 2**downsampling]."""
        z_e = self._latents(x)
        loss, z_q, perplexity, _, indices = self.vector_quantization(z_e)
        grid = indices.view(z_e.shape[0], *z_e.shape[2:])
        return VQVAEOutput(self.decoder(z_q), loss, perplexity, grid)

    def encode(self, x: Tensor) -> Tensor:
        """Indices of images, int64 [B, H / 2**downsampling, W / 2**downsampling].

        Learns nothing in any mode.
        """
        return self.vector_quantization.encode(self._latents(x))

    def decode(self, indices: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] of the indices that :meth:`encode` returns."""
        image: Tensor = self.decoder(self.vector_quantization.decode(indices))
        return image

    @classmethod
    def from_reference(cls, path: str | PathLike[str]) -> "VQVAE":
        """Load a checkpoint of the reference implementation (MishaLaskin/vqvae).

        The model computes what that implementation computes: its loss (``legacy``), its shared
        residual weights, its skip connections. Sizes come from the weights, beta from the
        checkpoint's hyperparameters. The file is read with ``weights_only=True``: nothing in it
        is executed.

        Args:
            path: file written by the reference's training script.

        Returns:
            The model on the CPU, in train mode.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not such a checkpoint, or holds more than tensors and numbers.
        """
        config, state = read_reference_checkpoint(path)
        model = cls(**config)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{path} is not a reference VQ-VAE checkpoint: {error}") from error
        return model

    def _latents(self, x: Tensor) -> Tensor:
        channels, factor = self.config["in_channels"], 2 ** self.config["downsampling"]
        if x.dim() != 4 or x.shape[1] != channels or x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(
                f"x must be [B, {channels}, H, W] with H and W multiples of {factor}, "
                f"got {list(x.shape)}"
            )
        latents: Tensor = self.pre_quantization_conv(self.encoder(x))
        if self.config["l2_norm"]:
            latents = nn.functional.normalize(latents, dim=1) * self.config["embedding_dim"] ** 0.5
        return latents


def _quantizer(
    arguments: Mapping[str, Any], n_e: int, e_dim: int, beta: float, legacy: bool
) -> Quantizer:
    """Make the quantizer of a model; ``arguments`` are those of VQVAE's ``quantizer``."""
    others = dict(arguments)
    name = others.pop("class", "VectorQuantizer")
    classes = quantizer_classes()
    if name not in classes:
        raise ValueError(f"the quantizer's class must be one of {', '.join(classes)}, got {name!r}")
    if legacy:
        others["legacy"] = True
    return classes[name](n_e, e_dim, beta, **others)
