"""vector-quantize-pytorch's SimVQ and ResidualSimVQ: -> ours of the same names.

The weights are ``frozen_codebook`` [K, F] and ``code_transform.weight`` [D, F], the learned map. If
the map is not one linear layer, give the module as the option ``codebook_transform``, and ``dim``.
"""

from typing import Any

from torch import Tensor

from vqvae_fast.checkpoints.formats.format import Description, Format, anchor
from vqvae_fast.checkpoints.weights import Weights


def _single(weights: Weights, options: dict[str, Any]) -> Description:
    return "SimVQ", _sizes(weights, options), weights.take_all()


def _residual(weights: Weights, options: dict[str, Any]) -> Description:
    state: dict[str, Tensor] = {}
    arguments = []
    for number, layer in enumerate(weights.numbered("layers")):
        arguments.append(_sizes(layer, options))
        state |= {f"layers.{number}.{name}": t for name, t in layer.take_all().items()}
    if any(other != arguments[0] for other in arguments):
        raise ValueError(f"all stages must have the same sizes, got {arguments}")
    return "ResidualSimVQ", {**arguments[0], "num_quantizers": len(arguments)}, state


def _sizes(weights: Weights, options: dict[str, Any]) -> dict[str, Any]:
    size, frozen_dim = weights.shaped("frozen_codebook", None, None).shape
    arguments = {"codebook_size": size, "frozen_codebook_dim": frozen_dim}
    if "codebook_transform" not in options:
        arguments["dim"] = weights.shaped("code_transform.weight", None, None).shape[0]
    return arguments


SINGLE = Format(
    "vector-quantize-pytorch's SimVQ (frozen_codebook)", anchor("frozen_codebook"), _single
)
RESIDUAL = Format(
    "vector-quantize-pytorch's ResidualSimVQ (layers.0.frozen_codebook)",
    anchor(r"layers\.\d+\.frozen_codebook"),
    _residual,
)
