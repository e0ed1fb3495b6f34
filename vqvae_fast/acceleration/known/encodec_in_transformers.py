"""EnCodec in Hugging Face's transformers, and the codecs that have its quantizer, too."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vqvae_fast.acceleration.kept import nearest
from vqvae_fast.acceleration.known.residual_stages import encode_stages
from vqvae_fast.acceleration.recipe import Recipe, Replacement, Search


def _quantize(original: Callable[..., Any], codebook: Any, hidden_states: Tensor) -> Tensor:
    """EncodecEuclideanCodebook.quantize: [N, D] -> [N]."""
    return nearest(codebook, hidden_states, codebook.embed)


def _searched(codebook: Any, indices: Tensor, hidden_states: Tensor) -> Search:
    return Search(hidden_states, codebook.embed, indices)


def _encode(stages: str, kind: str) -> Replacement:
    """Replace ``encode`` of a residual quantizer: [B, D, T] -> [Q, B, T].

    Args:
        stages: the attribute that has its stages.
        kind: the class of a stage.
    """

    def encode(
        original: Callable[..., Any],
        quantizer: Any,
        embeddings: Tensor,
        bandwidth: float | None = None,
    ) -> Tensor:
        number = quantizer.get_num_quantizers_for_bandwidth(bandwidth)
        of_quantizer = getattr(quantizer, stages)
        codebooks = [stage.codebook for stage in of_quantizer]
        books = [codebook.embed for codebook in codebooks]
        codes = encode_stages(quantizer, embeddings, of_quantizer, codebooks, books, number, kind)
        return original(quantizer, embeddings, bandwidth) if codes is None else codes

    return encode


def _sizes(codebook: Any) -> str:
    return f"K={codebook.embed.shape[0]}, D={codebook.embed.shape[1]}"


def _codebook(name: str) -> Recipe:
    return Recipe(
        f"transformers.models.{name}EuclideanCodebook",
        {"quantize": _quantize},
        sizes=_sizes,
        observed=("quantize", _searched),
    )


RECIPES = (
    _codebook("encodec.modeling_encodec.Encodec"),
    _codebook("xcodec.modeling_xcodec.Xcodec"),
    # Its stages project before and after the search, so they are called one by one.
    _codebook("higgs_audio_v2_tokenizer.modeling_higgs_audio_v2_tokenizer.HiggsAudioV2Tokenizer"),
    Recipe(
        "transformers.models.encodec.modeling_encodec.EncodecResidualVectorQuantizer",
        {"encode": _encode("layers", "EncodecVectorQuantization")},
        sizes=lambda quantizer: _sizes(quantizer.layers[0].codebook),
    ),
    Recipe(
        "transformers.models.xcodec.modeling_xcodec.XcodecResidualVectorQuantization",
        {"encode": _encode("quantizers", "XcodecVectorQuantization")},
        sizes=lambda quantizer: _sizes(quantizer.quantizers[0].codebook),
    ),
)
