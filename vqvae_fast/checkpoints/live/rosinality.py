"""Settings of VQ-VAE-2's quantizer, of rosinality/vq-vae-2-pytorch: -> VectorQuantizer.

It is known by its attributes, because its project is a folder of scripts.
"""

from collections.abc import Collection
from typing import Any

from torch import nn

from vqvae_fast.checkpoints.weights import Weights


def settings(module: nn.Module, weights: Weights, given: Collection[str]) -> dict[str, Any] | None:
    """Options for the format; None if the module is none of these."""
    if not all(hasattr(module, name) for name in ("n_embed", "embed", "decay", "eps")):
        return None
    return {"decay": module.decay, "eps": module.eps}
