"""Quantizers out of checkpoints, those of other libraries, too.

    from vqvae_fast.checkpoints import load_quantizer
    quantizer = load_quantizer("vqgan.ckpt")

``load`` finds the quantizer in a file, ``files`` reads the file without running anything in it,
``formats`` holds one module for each family of layouts, ``stored`` is what they all lead to: the
name of our class, its arguments, its state dict.
"""

from vqvae_fast.checkpoints.load import load_quantizer, read_quantizer
from vqvae_fast.checkpoints.stored import StoredQuantizer

__all__ = ["StoredQuantizer", "load_quantizer", "read_quantizer"]
