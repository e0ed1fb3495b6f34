"""Settings of quantizers with a codebook in an nn.Embedding: -> VectorQuantizer.

They are known by their attributes, because many projects copy the classes of taming-transformers:

* ``beta`` and ``legacy``: VectorQuantizer2 of taming and latent diffusion, and diffusers' class;
* ``beta``, ``l2_norm`` and ``entropy_loss_ratio``: LlamaGen's, whose loss is not the legacy one;
* ``beta``, and ``decay`` and ``eps`` of its embedding: taming's EMAVectorQuantizer.

taming's VectorQuantizer has no ``legacy`` and always its loss: it is known by its name. So are the
quantizers of Chameleon, Janus and GLM-Image in transformers. A ``remap`` of indices is refused.
``sane_index_shape`` only says how indices are returned. LlamaGen and GLM-Image compare directions:
ours finds the same codes, but its loss is that of the vectors as they are.
"""

from collections.abc import Collection
from typing import Any

from torch import nn

from vqvae_fast.checkpoints.live.attributes import unreadable, without_counterpart
from vqvae_fast.checkpoints.live.classes import library_class
from vqvae_fast.checkpoints.weights import Weights

# They have taming's loss.
_LEGACY = (
    ("taming", "VectorQuantizer"),
    ("transformers", "ChameleonVQVAEVectorQuantizer"),
    ("transformers", "JanusVQVAEVectorQuantizer"),
)


def settings(module: nn.Module, weights: Weights, given: Collection[str]) -> dict[str, Any] | None:
    """Options for the format; None if the module is none of these.

    Raises:
        ValueError: the module does what ours does not do.
    """
    embedding = getattr(module, "embedding", None)
    if embedding is None or not _has(module, "beta"):
        return None
    if getattr(module, "remap", None) is not None:
        raise unreadable("remap", "ours has no such argument; indices are those of all codes")
    beta = {"beta": float(module.beta)}  # type: ignore[arg-type]
    if _has(module, "legacy"):
        return {**beta, "legacy": bool(module.legacy)}
    if _has(module, "l2_norm", "entropy_loss_ratio"):
        if module.entropy_loss_ratio:
            without_counterpart(module, "entropy_loss_ratio", None, given)
        if module.l2_norm:
            without_counterpart(module, "l2_norm", "l2_norm", given)
        return {**beta, "legacy": False, "l2_norm": bool(module.l2_norm)}
    if _has(embedding, "decay", "eps"):
        return {**beta, "decay": embedding.decay, "eps": embedding.eps}
    if any(library_class(module, package, (name,)) for package, name in _LEGACY):
        return {**beta, "legacy": True}
    if library_class(module, "transformers", ("GlmImageVQVAEVectorQuantizer",)) is not None:
        without_counterpart(module, "normalize", None, given)
        return {**beta, "legacy": True, "l2_norm": True}
    return None


def _has(module: object, *names: str) -> bool:
    """Whether a module has all of these numbers."""
    return all(isinstance(getattr(module, name, None), (bool, int, float)) for name in names)
