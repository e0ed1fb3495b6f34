"""A codebook in an nn.Embedding: -> VectorQuantizer.

taming-transformers, latent diffusion, diffusers' VQModel, LlamaGen, IBQ and the reference VQ-VAE
all hold ``embedding.weight`` [K, D], and so do we. LlamaGen adds ``codebook_used``, a window of the
indices seen last, which its training shows and nothing else reads: it is left behind.

* beta and the legacy loss (taming's default is ``legacy=True``) cannot be seen: they are options.
* LlamaGen normalises z and codes (``codebook_l2_norm``, its default, which cannot be seen either).
  Among codes of length 1 the nearest to z and to z / |z| is the same, so the codes are normalised
  here, once. This is done where ``codebook_used`` is there; the option ``l2_norm`` says otherwise.
* IBQ chooses the code with the largest inner product, not the nearest one: decoding its indices is
  right, choosing them is ``vqvae_fast.nearest_code(z, codebook, metric="dot")``.
"""

import re
from typing import Any

import torch.nn.functional as F  # noqa: N812

from vqvae_fast.checkpoints.formats.format import Description, Format
from vqvae_fast.checkpoints.weights import Weights


def _describe(weights: Weights, options: dict[str, Any]) -> Description:
    codes = weights.take("embedding.weight", None, None)
    used = weights.take_first("codebook_used")
    if options.pop("l2_norm", used is not None):
        codes = F.normalize(codes, dim=1)
    n_e, e_dim = codes.shape
    arguments: dict[str, Any] = {"n_e": n_e, "e_dim": e_dim}
    state = {"embedding.weight": codes}
    # Moving averages have our names, or those of taming's EMAVectorQuantizer.
    averages = weights.take_first("ema.embed_avg", "embedding.embed_avg")
    sizes = weights.take_first("ema.cluster_size", "embedding.cluster_size")
    if averages is not None:
        arguments["learning"] = "ema"
        state["ema.embed_avg"] = averages
    if sizes is not None:
        state["ema.cluster_size"] = sizes
    if "kmeans.initted" in weights:
        arguments["kmeans_init"] = True
        state["kmeans.initted"] = weights.pop("kmeans.initted")
        samples = weights.take_first("kmeans.samples")  # older checkpoints have them
        if samples is not None:
            state["kmeans.samples"] = samples
    return "VectorQuantizer", arguments, state


# Language models have an embedding.weight, too: the parent's name must be one of a quantizer.
_ANCHOR = re.compile(r"(?P<prefix>(?:(?:.*\.)?\w*(?:quant|vq|codebook)\w*\.)?)embedding\.weight")

FORMAT = Format(
    "taming, latent diffusion, diffusers, LlamaGen, IBQ, the reference VQ-VAE (embedding.weight)",
    _ANCHOR,
    _describe,
)
