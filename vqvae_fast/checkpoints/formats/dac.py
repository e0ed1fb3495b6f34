"""DAC, the Descript Audio Codec: -> ResidualVQ(project_per_stage=True, cosine_search=True).

``quantizers.i`` holds ``codebook.weight`` [K, 8] and two 1x1 convolutions, ``in_proj`` to 8
channels and ``out_proj`` back. Vectors and codes are normalised only to find the nearest code:
``out_proj`` gets the code as it is stored. The convolutions are stored with
weight normalisation (weight = g v / |v|, in torch's old or new naming) or, at Hugging Face,
without. Its modules take [B, D, T], ours [B, T, D].
"""

from typing import Any

from vqvae_fast.checkpoints.formats.format import Description, Format, anchor
from vqvae_fast.checkpoints.formats.stages import Linear, Stage, sizes, state_of
from vqvae_fast.checkpoints.weights import Weights

_TRAINED_WITH = {
    "cosine_search": True,
    "learnable_codebook": True,
    "ema_update": False,
    "rotation_trick": False,
}


def _describe(weights: Weights, options: dict[str, Any]) -> Description:
    stages = [_stage(layer) for layer in weights.numbered("quantizers")]
    arguments = {**sizes(stages), "project_per_stage": True, **_TRAINED_WITH}
    return "ResidualVQ", arguments, state_of(stages)


def _stage(layer: Weights) -> Stage:
    stage = Stage(
        layer.take("codebook.weight", None, None),
        project_in=_convolution(layer.take_below("in_proj.")),
        project_out=_convolution(layer.take_below("out_proj.")),
    )
    layer.check_empty()
    return stage


def _convolution(weights: Weights) -> Linear:
    """A 1x1 convolution as a linear map."""
    bias = weights.take("bias", None)
    if "weight" in weights:
        weight = weights.take("weight", len(bias), None, 1)
    else:
        new = "parametrizations.weight.original0" in weights
        names = "parametrizations.weight.original0", "parametrizations.weight.original1"
        g, v = names if new else ("weight_g", "weight_v")
        direction = weights.take(v, len(bias), None, 1)
        length = weights.take(g, len(bias), 1, 1)
        weight = length * direction / direction.norm(dim=(1, 2), keepdim=True)
    weights.check_empty()
    return Linear(weight[:, :, 0], bias)


FORMAT = Format(
    "DAC (quantizers.0.codebook.weight)",
    anchor(r"quantizers\.\d+\.codebook\.weight"),
    _describe,
)
