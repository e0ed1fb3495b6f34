"""Mimi, in Moshi's, Hugging Face's and our own layout: -> SplitResidualVQ.

A semantic and an acoustic ResidualVQ take the same input, each between two 1x1 convolutions without
bias, and their outputs are added. A code is stored as the moving sum and the moving number of the
vectors that chose it: embed = sum / clamp(number, 1e-5).

| here | Moshi (older) | Hugging Face |
|---|---|---|
| rvq_first | rvq_first.vq | semantic_residual_vector_quantizer |
| rvq_rest | rvq_rest.vq | acoustic_residual_vector_quantizer |
| embed_avg | embedding_sum (embed_sum, embed_avg) | embed_sum |
| cluster_size | cluster_usage (cluster_size) | cluster_usage |
| initted | _initialized (inited) | initialized |
"""

from typing import Any

from torch import Tensor

from vqvae_fast.checkpoints.formats.encodec import TRAINED_WITH
from vqvae_fast.checkpoints.formats.format import Description, Format, anchor
from vqvae_fast.checkpoints.formats.stages import Stage, sizes, state_of
from vqvae_fast.checkpoints.weights import Weights

EPSILON = 1e-5
_HUGGING_FACE = ("semantic_residual_vector_quantizer.", "acoustic_residual_vector_quantizer.")
_MOSHI = ("rvq_first.", "rvq_rest.")


def _describe(weights: Weights, options: dict[str, Any]) -> Description:
    moshi = any(name.startswith(_MOSHI) for name in weights)
    state: dict[str, Tensor] = {}
    shapes, numbers, projected = [], [], []
    for ours, theirs in zip(_MOSHI, _MOSHI if moshi else _HUGGING_FACE, strict=True):
        part = weights.take_below(theirs)
        layers = (part.take_below("vq.") if moshi else part).numbered("layers")
        stages = [_stage(layer) for layer in layers]
        for name in ("input_proj.weight", "output_proj.weight"):
            if name in part:
                state[ours + name] = part.take(name, None, None, 1)
        part.check_empty()
        state |= state_of(stages, f"{ours}vq.")
        shape = sizes(stages)
        numbers.append(shape.pop("num_quantizers", None))
        shapes.append(shape)
        projected.append(f"{ours}input_proj.weight" in state)
    if shapes[0] != shapes[1] or None in numbers or projected[0] != projected[1]:
        raise ValueError(
            f"the semantic and the acoustic codebooks must have one shape, got {shapes}"
        )
    shape, (semantic, acoustic) = shapes[0], numbers
    shape["codebook_dim"] = shape["dim"]
    if projected[0]:
        shape["dim"] = state["rvq_first.input_proj.weight"].shape[1]
    arguments = {
        **shape,
        "num_quantizers": semantic + acoustic,
        "num_semantic_quantizers": semantic,
        "projections": projected[0],
        **TRAINED_WITH,
    }
    return "SplitResidualVQ", arguments, state


def _stage(layer: Weights) -> Stage:
    hugging_face = any(name.startswith("codebook.") for name in layer)
    book = layer.take_below("codebook." if hugging_face else "_codebook.")
    if "embed" in book:
        return _our_stage(book, layer)
    total = book.take(book.first_of("embedding_sum", "embed_sum", "embed_avg"), None, None)
    count = book.take(book.first_of("cluster_usage", "cluster_size"), len(total))
    initted = book.take_flag(book.first_of("_initialized", "initialized", "inited"))
    book.check_empty()
    layer.check_empty()
    embed = total / count.clamp(min=EPSILON)[:, None]
    return Stage(embed, count, total, initted)


def _our_stage(book: Weights, layer: Weights) -> Stage:
    """The state as SplitResidualVQ has it: with an axis of heads, and with the codes."""
    embed = book.take("embed", 1, None, None)[0]
    count = book.take("cluster_size", 1, len(embed))[0]
    average = book.take("embed_avg", 1, *embed.shape)[0]
    stage = Stage(embed, count, average, book.take_flag("initted"))
    book.check_empty()
    layer.check_empty()
    return stage


FORMAT = Format(
    "Mimi, Moshi's or Hugging Face's (rvq_first.vq.layers.0._codebook.embedding_sum)",
    anchor(
        r"(?:rvq_(?:first|rest)\.vq|(?:semantic|acoustic)_residual_vector_quantizer)"
        r"\.layers\.\d+\._?codebook\.\w+"
    ),
    _describe,
)
