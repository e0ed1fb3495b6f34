"""What a quantizer offers to the VQ-VAE around it, and to training."""

from typing import Any, Protocol

from torch import Tensor

from vqvae_fast.nn.vqvae.one_hot import LazyOneHot

# (loss, z_q, perplexity, min_encodings, min_encoding_indices); see Quantizer.forward.
QuantizerOutput = tuple[Tensor, Tensor, Tensor, LazyOneHot, Tensor]


class Quantizer(Protocol):
    """A torch module that replaces every vector of a feature map by one of K codes.

    :class:`VectorQuantizer` and :class:`vqvae_fast.sharded.ShardedVectorQuantizer` are such
    modules. :class:`vqvae_fast.VQVAE` can hold any, and ``vqvae-fast train`` trains those that have
    a file in :mod:`vqvae_fast.recipes`. Such a class also keeps these rules:

    * ``VQVAE`` calls its constructor as ``cls(n_e, e_dim, beta, **arguments)``. The arguments are
      numbers, strings, flags, or lists and dicts of them, since a checkpoint records them. A reader
      of a checkpoint builds the module on the device "meta" first, to see how large it is.
    * Its ``state_dict`` holds all that a later call depends on, and keeps its shapes. Adam trains
      the parameters that require a gradient; a codebook that learns in another way is a buffer.
    * In eval mode, and for an empty batch, it learns nothing.
    * If it must see vectors before it has codes, it holds a :class:`vqvae_fast.nn.KMeansInit`.
      Until that is ``done``, training writes null for the figures of the codebook, does not
      evaluate the model, and keeps the collected vectors in the checkpoint.
    * Under ``torch.distributed`` it keeps its codes the same in all processes; gradients of
      parameters are averaged for it.
    """

    n_e: int
    e_dim: int

    def __init__(self, n_e: int, e_dim: int, beta: float = 0.25, **arguments: Any) -> None:
        """Make a quantizer with n_e codes of length e_dim; beta weighs the commitment loss."""

    @property
    def codebook(self) -> Tensor:
        """The codes, [n_e, e_dim]. An image's codes can be decoded by models with the same ones."""
        ...

    def forward(self, z: Tensor) -> QuantizerOutput:
        """Quantize a feature map.

        Args:
            z: [B, e_dim, H, W] of any float dtype; mixed precision gives bfloat16 or float16.

        Returns:
            ``(loss, z_q, perplexity, min_encodings, min_encoding_indices)``: the embedding loss,
            0-d; z_q like z, with a gradient for z; the batch's perplexity, 0-d
            (:func:`vqvae_fast.nn.perplexity`); the one-hot rows [B*H*W, n_e], which nothing in
            training reads; and the indices [B*H*W, 1] int64, in the order batch, height, width.
        """
        ...

    def __call__(self, z: Tensor) -> QuantizerOutput:
        """Call :meth:`forward`, as every torch module does."""
        ...

    def encode(self, z: Tensor) -> Tensor:
        """Indices [B, H, W] int64 of a feature map [B, e_dim, H, W]; changes no state."""
        ...

    def decode(self, indices: Tensor) -> Tensor:
        """Feature map [B, e_dim, H, W] of indices [B, H, W]: the rows of :attr:`codebook`."""
        ...
