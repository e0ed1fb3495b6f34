"""EnCodec, audiocraft and Hugging Face's EnCodec: -> ResidualVQ.

``layers.i._codebook`` (``codebook`` at Hugging Face) holds ``inited`` [1], ``cluster_size`` [K],
``embed`` and ``embed_avg`` [K, D]; where the codes' dimension is not the model's, each layer has
its projections. The codes of all layers are added. Its modules take [B, D, T], ours [B, T, D].
"""

from typing import Any

from vqvae_fast.checkpoints.formats.format import Description, Format, anchor
from vqvae_fast.checkpoints.formats.stages import Stage, sizes, state_of, take_projection
from vqvae_fast.checkpoints.weights import Weights

# The settings of EnCodec's authors that differ from VQP's defaults. They also replaced codes that
# fewer than 2 vectors of a batch chose. That moves codes, so the user must ask for it with the
# option threshold_ema_dead_code=2.
TRAINED_WITH = {"decay": 0.99, "rotation_trick": False}


def _describe(weights: Weights, options: dict[str, Any]) -> Description:
    stages = [_stage(layer) for layer in weights.numbered("layers")]
    return "ResidualVQ", {**sizes(stages), **TRAINED_WITH}, state_of(stages)


def _stage(layer: Weights) -> Stage:
    book = layer.take_below("codebook." if "codebook.embed" in layer else "_codebook.")
    embed = book.take("embed", None, None)
    stage = Stage(
        embed,
        book.take("cluster_size", len(embed)),
        book.take("embed_avg", *embed.shape),
        book.take_flag("inited"),
        take_projection(layer, "project_in"),
        take_projection(layer, "project_out"),
    )
    book.check_empty()
    layer.check_empty()
    return stage


FORMAT = Format(
    "EnCodec, audiocraft, Hugging Face's EnCodec (layers.0._codebook.inited)",
    anchor(r"layers\.\d+\._?codebook\.inited"),
    _describe,
)
