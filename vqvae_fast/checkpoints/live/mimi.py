"""Settings of Mimi's quantizers, of moshi and transformers: -> SplitResidualVQ.

The numbers of stages in use count; the stages behind them are left behind.
"""

from collections.abc import Collection
from typing import Any

from torch import nn

from vqvae_fast.checkpoints.formats.mimi import EPSILON
from vqvae_fast.checkpoints.live.attributes import (
    attribute,
    common,
    require_equal,
    without_counterpart,
)
from vqvae_fast.checkpoints.live.classes import library_class
from vqvae_fast.checkpoints.weights import Weights


def settings(module: nn.Module, weights: Weights, given: Collection[str]) -> dict[str, Any] | None:
    """Options for the format; None if the module is none of these.

    Raises:
        ValueError: the module does what ours does not do.
    """
    if library_class(module, "transformers", ("MimiSplitResidualVectorQuantizer",)) is not None:
        return _of_transformers(module, weights)
    if library_class(module, "moshi", ("SplitResidualVectorQuantizer",)) is not None:
        return _of_moshi(module, weights, given)
    return None


def _of_transformers(module: Any, weights: Weights) -> dict[str, Any]:
    parts = {
        "semantic_residual_vector_quantizer": module.num_semantic_quantizers,
        "acoustic_residual_vector_quantizer": (
            module.max_num_quantizers - module.num_semantic_quantizers
        ),
    }
    for name, used in parts.items():
        stages = getattr(module, name).layers
        _check_epsilon([stage.codebook for stage in stages])
        _leave(weights, f"{name}.layers", used, len(stages))
    return {"freeze_codebook": True}  # it has no training


def _of_moshi(module: Any, weights: Weights, given: Collection[str]) -> dict[str, Any]:
    books: list[Any] = []
    for name in ("rvq_first", "rvq_rest"):
        part = getattr(module, name)
        books += [stage._codebook for stage in part.vq.layers]
        _leave(weights, f"{name}.vq.layers", part.n_q, len(part.vq.layers))
        if part.no_quantization_rate > 0:
            without_counterpart(part, "no_quantization_rate", None, given)
    _check_epsilon(books)
    arguments = common([{"decay": attribute(book, "decay")} for book in books], "stages")
    if any(book.threshold_usage_ratio > 0 for book in books):
        without_counterpart(module, "threshold_usage_ratio", "threshold_ema_dead_code", given)
    if module.rvq_rest.q_dropout:
        # Ours drops stages of both parts, if both have several.
        if module.n_q_semantic > 1:
            without_counterpart(module, "q_dropout", "quantize_dropout", given)
        arguments["quantize_dropout"] = module.n_q_semantic == 1
    return arguments


def _check_epsilon(books: list[Any]) -> None:
    """Raise ValueError unless codes are their sums by their numbers as the format takes them."""
    require_equal("epsilon", [EPSILON, *(attribute(book, "epsilon") for book in books)], "stages")


def _leave(weights: Weights, layers: str, used: int, number: int) -> None:
    """Take out the weights of the stages that are not in use."""
    for unused in range(used, number):
        weights.take_below(f"{layers}.{unused}.")
