"""Settings of EnCodec's quantizers, of encodec, audiocraft and transformers: -> ResidualVQ.

How many stages are in use is a matter of each call there, by its bandwidth.
"""

from collections.abc import Collection
from typing import Any

from torch import nn

from vqvae_fast.checkpoints.live.attributes import attributes, common, without_counterpart
from vqvae_fast.checkpoints.live.classes import library_class
from vqvae_fast.checkpoints.weights import Weights

_OF_CODEBOOK = ("decay", "kmeans_iters", "threshold_ema_dead_code")


def settings(module: nn.Module, weights: Weights, given: Collection[str]) -> dict[str, Any] | None:
    """Options for the format; None if the module is none of these.

    Raises:
        ValueError: the module does what ours does not do.
    """
    if library_class(module, "transformers", ("EncodecResidualVectorQuantizer",)) is not None:
        return {"freeze_codebook": True}  # it has no training
    if library_class(module, "encodec", ("ResidualVectorQuantization",)) is not None:
        # Its residuals pass a gradient to the stages before; audiocraft's do not.
        return {**_of_stages(module, given), "quant_grad_frac": 1.0}
    if library_class(module, "audiocraft", ("ResidualVectorQuantization",)) is not None:
        return _of_stages(module, given)
    return None


def _of_stages(module: Any, given: Collection[str]) -> dict[str, Any]:
    return common([_of_stage(stage, given) for stage in module.layers], "stages")


def _of_stage(stage: Any, given: Collection[str]) -> dict[str, Any]:
    if getattr(stage, "orthogonal_reg_weight", 0) > 0:
        without_counterpart(stage, "orthogonal_reg_weight", None, given)
    return {
        **attributes(stage._codebook, _OF_CODEBOOK),
        "eps": stage._codebook.epsilon,
        "commitment_weight": stage.commitment_weight,
    }
