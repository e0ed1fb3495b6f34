"""Reads live modules of other libraries: the settings that a state dict does not hold.

No library is imported: a module is known by the names of its class (``classes``). The folder
``vqp`` reads vector-quantize-pytorch's six classes completely; each other file reads the settings
of one library's quantizers, whose weights :mod:`vqvae_fast.checkpoints.formats` knows.
"""

from vqvae_fast.checkpoints.live.vqp import constructor_arguments, copy_state, peer_class

__all__ = ["constructor_arguments", "copy_state", "peer_class"]
