"""The arguments of a live SimVQ or ResidualSimVQ."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from vqvae_fast.checkpoints.live.attributes import (
    attribute,
    attributes,
    common,
    require_equal,
    unreadable,
)
from vqvae_fast.checkpoints.live.vqp.residual_vq import dropout

_OF_MODULE = (
    *("codebook_size", "channel_first", "rotation_trick", "commitment_weight"),
    "input_to_quantize_commit_loss_weight",
)


def sim_vq(module: nn.Module) -> dict[str, Any]:
    """The arguments of a SimVQ, without ``init_fn``, which acts on its frozen codes once.

    The map of the codes is the argument ``codebook_transform``, the live module itself, unless it
    is a linear layer as the class makes it.

    Raises:
        ValueError: names the setting that ours cannot take over.
    """
    transform = attribute(module, "code_transform")
    arguments = _sizes(module, transform)
    if not _is_default(transform):
        arguments["codebook_transform"] = transform
    return arguments


def residual_sim_vq(module: nn.Module) -> dict[str, Any]:
    """The arguments of a ResidualSimVQ; raises ValueError likewise."""
    stages = list(attribute(module, "layers"))
    if len(stages) != attribute(module, "num_quantizers"):
        raise unreadable(
            "num_quantizers", f"it is {module.num_quantizers!r}, with {len(stages)} layers"
        )
    transforms = [attribute(stage, "code_transform") for stage in stages]
    arguments = common(
        [_sizes(stage, of) for stage, of in zip(stages, transforms, strict=True)], "stages"
    )
    different = {id(transform) for transform in transforms}
    if len(different) < len(stages) or not all(map(_is_default, transforms)):
        # A module that was given to the constructor serves all stages.
        require_equal("codebook_transform", transforms, "stages")
        arguments["codebook_transform"] = transforms[0]
    layouts = [attribute(module, "channel_first"), arguments["channel_first"]]
    require_equal("channel_first", layouts, "stages")
    return {**arguments, "num_quantizers": len(stages), **dropout(module)}


def _sizes(module: nn.Module, transform: nn.Module) -> dict[str, Any]:
    """All arguments but the map."""
    frozen: Tensor = attribute(module, "frozen_codebook")
    arguments = attributes(module, _OF_MODULE)
    if len(frozen) != arguments["codebook_size"]:
        raise unreadable(
            "codebook_size", f"it is {arguments['codebook_size']!r}, with {len(frozen)} codes"
        )
    return {"dim": _dim(transform, frozen), "frozen_codebook_dim": frozen.shape[1], **arguments}


def _dim(transform: nn.Module, frozen: Tensor) -> int:
    """D, which the module does not keep: what its map makes of one code."""
    if isinstance(transform, nn.Linear):
        return transform.out_features
    try:
        with torch.no_grad():
            code = copy.deepcopy(transform).eval()(frozen[:1])  # a call may write statistics
        (_, dim) = code.shape
    except Exception as error:  # of any module
        raise unreadable(
            "dim", f"code_transform must make [1, D] of one code [1, F]: {error}"
        ) from error
    return int(dim)


def _is_default(transform: nn.Module) -> bool:
    """Whether it is a linear layer as the class makes it, and nothing was attached to it."""
    return (
        type(transform) is nn.Linear
        and transform._parameters.keys() == {"weight", "bias"}
        and transform._parameters["bias"] is None
        and not (transform._forward_hooks or transform._forward_pre_hooks)
    )
