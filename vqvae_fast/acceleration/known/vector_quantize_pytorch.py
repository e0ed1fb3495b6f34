"""vector-quantize-pytorch 1.32: the quantizers that search for nearest codes."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vqvae_fast.acceleration.known import codebook_of_vqp, sim_vq_of_vqp
from vqvae_fast.acceleration.known.codebook_of_vqp import (
    argument_that_draws,
    call_without_distances,
    sizes,
)
from vqvae_fast.acceleration.known.stages_of_vqp import only_searches, search
from vqvae_fast.acceleration.known.training_of_vqp import is_plain, train
from vqvae_fast.acceleration.recipe import Recipe
from vqvae_fast.acceleration.untraced import untraced


@untraced
def _quantize(
    original: Callable[..., Any],
    quantizer: Any,
    x: Tensor,
    indices: Tensor | None = None,
    mask: Tensor | None = None,
    lens: Tensor | None = None,
    topk: int | None = None,
    sample_codebook_temp: float | None = None,
    freeze_codebook: bool | None = None,
    return_loss_breakdown: bool = False,
    codebook_transform_fn: Callable[..., Tensor] | None = None,
    ema_update_weight: Any = None,
    accum_ema_update: bool = False,
    ema_update: bool | None = None,
) -> Any:
    """VectorQuantize.forward."""
    averaging = {
        "ema_update_weight": ema_update_weight,
        "accum_ema_update": accum_ema_update,
        "ema_update": ema_update,
    }
    others = (indices, mask, lens, topk, codebook_transform_fn, return_loss_breakdown or None)
    asks_for_more = any(other is not None for other in others)
    if not asks_for_more and is_plain(quantizer, x, sample_codebook_temp):
        frozen = quantizer.freeze_codebook if freeze_codebook is None else freeze_codebook
        return train(quantizer, x, frozen, **averaging)

    def call() -> Any:
        return original(
            quantizer,
            x,
            indices,
            mask,
            lens,
            topk,
            sample_codebook_temp,
            freeze_codebook,
            return_loss_breakdown,
            codebook_transform_fn,
            **averaging,
        )

    reads_distances = indices is not None or (
        quantizer.training and _loss_of_distances(quantizer) is not None
    )
    return call() if reads_distances else call_without_distances(quantizer._codebook, call)


def _loss_of_distances(quantizer: Any) -> str | None:
    """The argument that gives training a loss of all distances; None if there is none."""
    if quantizer.has_codebook_diversity_loss:
        return "codebook_diversity_loss_weight"
    if quantizer.has_commitment_loss and quantizer.commitment_use_cross_entropy_loss:
        return "commitment_use_cross_entropy_loss"
    return None


def _argument_left_alone(quantizer: Any) -> str | None:
    """The argument for which training needs all distances, as before; None if there is none."""
    return _loss_of_distances(quantizer) or argument_that_draws(quantizer._codebook)


def _sizes(quantizer: Any) -> str:
    left_alone = _argument_left_alone(quantizer)
    training = f"; training with {left_alone} is as before" if left_alone else ""
    return sizes(quantizer._codebook) + training


def _reason_to_leave(quantizer: Any) -> str | None:
    codebook = quantizer._codebook
    if codebook_of_vqp.RECIPE.class_of(codebook) is None:
        return f"its _codebook is no Codebook of version 1.32, but a {type(codebook).__name__}"
    reason = codebook_of_vqp.RECIPE.reason_to_leave(codebook)
    return None if reason is None else f"of its _codebook: {reason}"


@untraced
def _quantize_in_stages(
    original: Callable[..., Any],
    quantizer: Any,
    x: Tensor,
    mask: Tensor | None = None,
    indices: Any = None,
    return_all_codes: bool = False,
    sample_codebook_temp: float | None = None,
    freeze_codebook: bool = False,
    beam_size: int | None = None,
    rand_quantize_dropout_fixed_seed: int | None = None,
) -> Any:
    """ResidualVQ.forward."""
    beams = quantizer.eval_beam_size if beam_size is None else beam_size
    asks_for_more = mask is not None or indices is not None or (beams or 1) > 1
    if asks_for_more or not only_searches(quantizer, x):
        return original(
            quantizer,
            x,
            mask,
            indices,
            return_all_codes,
            sample_codebook_temp,
            freeze_codebook,
            beam_size,
            rand_quantize_dropout_fixed_seed,
        )
    found, total = search(quantizer, quantizer.project_in(x))
    losses = x.new_zeros(quantizer.num_quantizers)
    result = (quantizer.project_out(total), found, losses)
    return (*result, quantizer.get_codes_from_indices(found)) if return_all_codes else result


def _sizes_of_stages(quantizer: Any) -> str:
    transformed = quantizer.implicit_neural_codebook
    alone = "; its stages are as before, because of implicit_neural_codebook" if transformed else ""
    return f"{quantizer.num_quantizers} stages of {_sizes(quantizer.layers[0])}{alone}"


RECIPES = (
    Recipe(
        "vector_quantize_pytorch.vector_quantize_pytorch.VectorQuantize",
        {"forward": _quantize},
        refusal=_reason_to_leave,
        sizes=_sizes,
    ),
    codebook_of_vqp.RECIPE,
    Recipe(
        "vector_quantize_pytorch.residual_vq.ResidualVQ",
        {"forward": _quantize_in_stages},
        sizes=_sizes_of_stages,
    ),
    sim_vq_of_vqp.RECIPE,
)
