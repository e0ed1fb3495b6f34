"""Settings of DAC's quantizers, of descript-audio-codec and transformers: -> ResidualVQ.

``n_codebooks`` says how many stages are in use; the others are left behind. ``quantizer_dropout``
is the share of a batch for which each item stops after a stage of its own; ours stops after one
stage for all items.
"""

from collections.abc import Collection
from typing import Any

from torch import nn

from vqvae_fast.checkpoints.live.attributes import attribute, without_counterpart
from vqvae_fast.checkpoints.live.classes import library_class
from vqvae_fast.checkpoints.weights import Weights

_CLASSES = (("dac", "ResidualVectorQuantize"), ("transformers", "DacResidualVectorQuantizer"))


def settings(module: nn.Module, weights: Weights, given: Collection[str]) -> dict[str, Any] | None:
    """Options for the format; None if the module is none of these.

    Raises:
        ValueError: the module does what ours does not do.
    """
    if not any(library_class(module, package, (name,)) for package, name in _CLASSES):
        return None
    stages = attribute(module, "quantizers")
    for unused in range(attribute(module, "n_codebooks"), len(stages)):
        weights.take_below(f"quantizers.{unused}.")
    if attribute(module, "quantizer_dropout"):
        without_counterpart(module, "quantizer_dropout", "quantize_dropout", given)
    return {"quant_grad_frac": 1.0}  # its residuals pass a gradient to the stages before
