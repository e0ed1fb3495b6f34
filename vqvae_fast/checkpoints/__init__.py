"""Reads quantizers out of checkpoints of this and other libraries.

    from vqvae_fast.checkpoints import load_quantizer
    quantizer = load_quantizer("vqgan.ckpt")

``load`` finds the quantizer in a file, ``files`` reads the file without running anything in it,
``formats`` holds one module for each family of layouts, and ``stored`` the result of all formats:
the name of our class, its arguments, its state dict.
"""

from vqvae_fast.checkpoints.load import load_quantizer, read_quantizer
from vqvae_fast.checkpoints.stored import StoredQuantizer

__all__ = ["StoredQuantizer", "load_quantizer", "read_quantizer"]
