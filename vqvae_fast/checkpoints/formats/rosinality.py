"""VQ-VAE-2 of rosinality/vq-vae-2-pytorch: -> VectorQuantizer(learning="ema").

``embed`` and ``embed_avg`` are [D, K] there, and turned here. Its module takes z as [..., D], ours
as [B, D, H, W].
"""

import re
from typing import Any

from vqvae_fast.checkpoints.formats.format import Description, Format
from vqvae_fast.checkpoints.weights import Weights


def _describe(weights: Weights, options: dict[str, Any]) -> Description:
    codes = weights.take("embed", None, None).T
    n_e, e_dim = codes.shape
    state = {
        "embedding.weight": codes,
        "ema.embed_avg": weights.take("embed_avg", e_dim, n_e).T,
        "ema.cluster_size": weights.take("cluster_size", n_e),
    }
    return "VectorQuantizer", {"n_e": n_e, "e_dim": e_dim, "learning": "ema"}, state


FORMAT = Format(
    "VQ-VAE-2 of rosinality (quantize_t.embed)",
    re.compile(r"(?P<prefix>(?:(?:.*\.)?quantize\w*\.)?)embed_avg"),
    _describe,
)
