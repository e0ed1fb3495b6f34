"""The arguments of a live VectorQuantize."""

import functools
from typing import Any

from torch import nn

from vqvae_fast.checkpoints.live.attributes import attribute, attributes, unreadable
from vqvae_fast.checkpoints.live.vqp.optimizers import optimizer_factory
from vqvae_fast.checkpoints.live.vqp.parts import has_layernorm, is_function, library_part

# Arguments that the module keeps, and uses, under their own names.
_OF_MODULE = (
    *("dim", "codebook_size", "heads", "separate_codebook_per_head", "freeze_codebook"),
    *("channel_last", "accept_image_fmap", "accept_3d_fmap", "use_cosine_sim"),
    *("commitment_use_cross_entropy_loss", "orthogonal_reg_active_codes_only"),
    *("orthogonal_reg_max_codes", "codebook_diversity_temperature", "rotation_trick"),
    *("directional_reparam", "directional_reparam_variance", "learnable_codebook"),
    *("manual_in_place_optimizer_update", "sync_update_v", "return_zeros_for_masked_padding"),
    "route_gradients_to_input",
)
# Those that only its codebook uses. The module keeps its own ``eps``, too, without using it.
_OF_CODEBOOK = (
    *("decay", "eps", "kmeans_iters", "sample_codebook_temp", "ema_update", "manual_ema_update"),
    *("vq_bridge", "affine_param"),
)
_OF_AFFINE_CODEBOOK = (
    *("sync_affine_param", "affine_param_batch_decay", "affine_param_codebook_decay"),
)


def vector_quantize(module: nn.Module, *, owns_codebook: bool = True) -> dict[str, Any]:
    """The arguments of a VectorQuantize.

    Args:
        module: the live one.
        owns_codebook: False for a stage that shares the first stage's codebook.

    Raises:
        ValueError: names the setting that ours cannot take over.
    """
    codebook = library_part("_codebook", attribute(module, "_codebook"), "Codebook")
    arguments = attributes(module, _OF_MODULE) | attributes(codebook, _OF_CODEBOOK)
    if arguments["affine_param"]:
        arguments |= attributes(codebook, _OF_AFFINE_CODEBOOK)
    arguments |= {
        "codebook_dim": codebook.embed.shape[-1],
        "kmeans_init": _needs_kmeans(codebook),
        "layernorm_after_project_in": has_layernorm(module),
        "in_place_codebook_optimizer": optimizer_factory(
            attribute(module, "in_place_codebook_optimizer"),
            codebook,
            of_first_stage=owns_codebook,
        ),
        **_search(codebook),
        **_processes(codebook),
        **_weights(module),
        "threshold_ema_dead_code": _threshold(codebook),
    }
    _check_agreement(module, codebook, arguments)
    return arguments


def _needs_kmeans(codebook: Any) -> bool:
    """Whether k-means has not yet started the codes; afterwards the argument has no effect."""
    initted = attribute(codebook, "initted")
    if initted.is_meta:
        raise unreadable("kmeans_init", "the module is on the device meta, which holds no values")
    return not bool(initted)


def _search(codebook: Any) -> dict[str, Any]:
    """What the constructor has bound to the function that chooses codes."""
    bound = attribute(codebook, "gumbel_sample")
    if (
        not isinstance(bound, functools.partial)
        or not is_function(bound.func, "gumbel_sample")
        or bound.keywords.keys() != {"stochastic", "straight_through"}
    ):
        raise unreadable("gumbel_sample", f"it is not the function that the class made: {bound!r}")
    return {
        "stochastic_sample_codes": bound.keywords["stochastic"],
        "straight_through": bound.keywords["straight_through"],
    }


def _processes(codebook: Any) -> dict[str, Any]:
    """What is summed over processes; the codebook keeps the functions that do it."""
    synced = bool(attribute(codebook, "use_ddp"))
    kmeans = not is_function(attribute(codebook, "kmeans_all_reduce_fn"), "noop")
    sums = not is_function(attribute(codebook, "all_reduce_fn"), "noop")
    if sums != synced or (kmeans and not synced):
        raise unreadable("sync_codebook", "use_ddp of its codebook was changed after it was made")
    sampler = "sample_vectors_distributed" if kmeans else "batched_sample_vectors"
    for name in ("sample_fn", "replace_sample_fn"):
        if not is_function(attribute(codebook, name), sampler):
            raise unreadable(name, f"it must be {sampler}, got {getattr(codebook, name)!r}")
    # Without sync_codebook, sync_kmeans has no effect, and nothing shows it.
    return {"sync_codebook": synced, **({"sync_kmeans": kmeans} if synced else {})}


def _weights(module: nn.Module) -> dict[str, float]:
    """The weights of the losses that the module has.

    Whether it has a loss was decided when it was made: with a weight of 0 it has none, and a weight
    that is set later has no effect. With directional_reparam neither class has a commitment loss.
    """
    has_loss = {
        "commitment_weight": attribute(module, "has_commitment_loss") or module.directional_reparam,
        "orthogonal_reg_weight": attribute(module, "has_codebook_orthogonal_loss"),
        "codebook_diversity_loss_weight": attribute(module, "has_codebook_diversity_loss"),
    }
    return {name: attribute(module, name) if has else 0.0 for name, has in has_loss.items()}


def _threshold(codebook: Any) -> float:
    """The least cluster size, if the codebook was made with one: a later one has no effect."""
    threshold: float = attribute(codebook, "threshold_ema_dead_code")
    if not attribute(codebook, "has_dead_code_replacement"):
        return 0
    if threshold <= 0 and not codebook.ema_update:
        raise unreadable(
            "threshold_ema_dead_code",
            f"it was positive when the module was made and is {threshold!r} now: without "
            "ema_update ours would no longer count how often codes are chosen",
        )
    start = attribute(codebook, "reset_cluster_size")
    if threshold > 0 and start != threshold:
        raise unreadable(
            "threshold_ema_dead_code",
            f"it is {threshold!r}, but codes that are replaced start with a cluster size of "
            f"{start!r}; set _codebook.reset_cluster_size to the threshold, too",
        )
    return max(threshold, 0)


def _check_agreement(module: nn.Module, codebook: Any, arguments: dict[str, Any]) -> None:
    """Raise ValueError where the module and its codebook no longer have the same settings."""
    unit = "l2norm" if codebook.use_cosine_sim else "identity"
    if not is_function(attribute(codebook, "transform_input"), unit):
        raise unreadable("use_cosine_sim", f"transform_input of the codebook is not {unit}")
    books = arguments["heads"] if arguments["separate_codebook_per_head"] else 1
    learnable = arguments["learnable_codebook"] or arguments["orthogonal_reg_weight"] > 0
    for name, of_codebook, of_module in (
        ("use_cosine_sim", codebook.use_cosine_sim, arguments["use_cosine_sim"]),
        ("codebook_size", codebook.codebook_size, arguments["codebook_size"]),
        ("separate_codebook_per_head", codebook.num_codebooks, books),
        ("learnable_codebook", codebook.learnable_codebook, learnable),
    ):
        if of_codebook != of_module:
            raise unreadable(
                name, f"its codebook was made for {of_codebook!r}, the module says {of_module!r}"
            )
