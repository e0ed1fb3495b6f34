"""The arguments of a live ResidualVQ or GroupedResidualVQ."""

from typing import Any

from torch import nn

from vqvae_fast.checkpoints.live.attributes import (
    attribute,
    attributes,
    common,
    require_equal,
    unreadable,
)
from vqvae_fast.checkpoints.live.vqp.parts import is_projection, library_part
from vqvae_fast.checkpoints.live.vqp.vector_quantize import vector_quantize

_OF_MODULE = (
    *("codebook_dim", "shared_codebook", "diveq", "quantize_dropout", "accept_image_fmap"),
    *("implicit_neural_codebook", "return_zeros_for_masked_padding"),
)
# A stage's arguments that the module gives to it, or that say nothing of the stages: their sizes,
# which are compared by themselves, and what stands for masked vectors, which the module replaces.
_NOT_OF_STAGES = (
    *("dim", "codebook_size", "codebook_dim", "kmeans_init", "heads"),
    *("accept_image_fmap", "layernorm_after_project_in", "return_zeros_for_masked_padding"),
)


def residual_vq(module: nn.Module) -> dict[str, Any]:
    """The arguments of a ResidualVQ; raises ValueError as :func:`vector_quantize` does."""
    stages: list[nn.Module] = list(attribute(module, "layers"))
    sizes = tuple(attribute(module, "codebook_sizes"))
    if not len(stages) == len(sizes) == attribute(module, "num_quantizers"):
        raise unreadable(
            "num_quantizers",
            f"it is {module.num_quantizers!r}, with {len(stages)} layers and {len(sizes)} "
            "codebook_sizes",
        )
    arguments = attributes(module, _OF_MODULE)
    of_stages = [
        vector_quantize(stage, owns_codebook=not arguments["shared_codebook"] or number == 0)
        for number, stage in enumerate(stages)
    ]
    _check_sizes(arguments, sizes, of_stages)
    _check_sharing(arguments["shared_codebook"], stages)
    kept = [{n: v for n, v in each.items() if n not in _NOT_OF_STAGES} for each in of_stages]
    arguments |= common(kept, "stages")
    return arguments | {
        "dim": _dim(module, arguments["codebook_dim"]),
        "num_quantizers": len(sizes),
        "codebook_size": sizes[0] if len(set(sizes)) == 1 else sizes,
        # The state says of each stage by itself whether k-means has started its codes.
        "kmeans_init": any(each["kmeans_init"] for each in of_stages),
        "quant_grad_frac": _gradient_share(module),
        **dropout(module),
        **_beams(module),
        **_networks(module),
    }


def grouped_residual_vq(module: nn.Module) -> dict[str, Any]:
    """The arguments of a GroupedResidualVQ; raises ValueError likewise."""
    arguments = attributes(module, ("dim", "groups", "accept_image_fmap"))
    groups = [residual_vq(part) for part in attribute(module, "rvqs")]
    if len(groups) != arguments["groups"]:
        raise unreadable("groups", f"it is {arguments['groups']!r}, with {len(groups)} rvqs")
    starts = [group.pop("kmeans_init") for group in groups]
    for name in ("dim", "accept_image_fmap"):
        wanted = arguments["dim"] // len(groups) if name == "dim" else arguments[name]
        require_equal(name, [wanted, *(group.pop(name) for group in groups)], "groups")
    return {**common(groups, "groups"), **arguments, "kmeans_init": any(starts)}


def dropout(module: nn.Module) -> dict[str, Any]:
    """The arguments of quantize dropout, as residual quantizers keep them."""
    names = "quantize_dropout_cutoff_index", "quantize_dropout_multiple_of"
    arguments = attributes(module, ("quantize_dropout", *names))
    if not arguments["quantize_dropout"] and not (
        0 <= arguments["quantize_dropout_cutoff_index"] < module.num_quantizers
        and arguments["quantize_dropout_multiple_of"] >= 1
    ):
        # Ours refuses numbers out of range, also where they have no effect.
        return {"quantize_dropout": False}
    return arguments


def _dim(module: nn.Module, codebook_dim: int) -> int:
    """D, which only the projection knows."""
    project_in = attribute(module, "project_in")
    return project_in.in_features if is_projection(module) else codebook_dim


def _check_sizes(
    arguments: dict[str, Any], sizes: tuple[int, ...], stages: list[dict[str, Any]]
) -> None:
    """Raise ValueError unless the stages are as the module makes them."""
    require_equal("codebook_size", [sizes, tuple(s["codebook_size"] for s in stages)], "stages")
    wanted = arguments["codebook_dim"]
    for name in ("dim", "codebook_dim"):
        require_equal("codebook_dim", [wanted, *(stage[name] for stage in stages)], "stages")
    require_equal("heads", [1, *(stage["heads"] for stage in stages)], "stages")
    fmap = arguments["accept_image_fmap"]
    require_equal(
        "accept_image_fmap", [fmap, *(stage["accept_image_fmap"] for stage in stages)], "stages"
    )


def _check_sharing(shared: bool, stages: list[nn.Module]) -> None:
    books = {id(attribute(stage, "_codebook")) for stage in stages}
    if len(books) != (1 if shared else len(stages)):
        raise unreadable(
            "shared_codebook",
            f"it is {shared!r}, but the {len(stages)} stages have {len(books)} different codebooks",
        )


def _gradient_share(module: nn.Module) -> float:
    share: float = attribute(module, "quant_grad_frac")
    if module.diveq and share != 1:
        raise unreadable("quant_grad_frac", f"it is always 1 with diveq, got {share!r}")
    return max(share, 0.0)  # the class takes a negative number for 0


def _beams(module: nn.Module) -> dict[str, Any]:
    """The sizes of beams; None, which means one beam, must not stand beside a number here."""
    training, evaluation = attribute(module, "beam_size"), attribute(module, "eval_beam_size")
    weights = attribute(module, "beam_score_weights").tolist()
    arguments = {"beam_score_quantizer_weights": weights}
    if training is None and evaluation is None:
        return arguments
    return arguments | {"beam_size": training or 1, "eval_beam_size": evaluation or 1}


def _networks(module: nn.Module) -> dict[str, Any]:
    """The arguments of the networks of an implicit neural codebook."""
    if not module.implicit_neural_codebook or module.num_quantizers == 1:
        return {}
    networks = list(attribute(module, "mlps"))
    found = [_network(network, module.layers[0].use_cosine_sim) for network in networks]  # type: ignore[index,union-attr]
    require_equal("mlp_kwargs", found, "stages")
    return {"mlp_kwargs": found[0]}


def _network(network: Any, unit_length: bool) -> dict[str, int]:
    library_part("mlps", network, "MLP")
    if attribute(network, "l2norm_output") != unit_length:
        raise unreadable("mlp_kwargs", "l2norm_output differs from use_cosine_sim of the stages")
    layers = list(attribute(network, "layers"))
    arguments = {"depth": len(layers)}
    if layers:
        arguments["dim_hidden"] = layers[0][0].out_features
    return arguments
