"""Our own files: those of ``vqvae-fast convert``, and runs of ``vqvae-fast train``."""

from collections.abc import Mapping
from typing import Any

from vqvae_fast.checkpoints.formats.reference_vqvae import reference_beta
from vqvae_fast.checkpoints.stored import FORMAT, StoredQuantizer
from vqvae_fast.checkpoints.tensors import check_tensors

_VQVAE = "vector_quantization."
_OURS = FORMAT.rstrip("0123456789")


def read_ours(checkpoint: Mapping[str, Any]) -> StoredQuantizer | None:
    """The quantizer that :meth:`StoredQuantizer.save` wrote; None for files of other kinds."""
    found = checkpoint.get("format")
    if not (isinstance(found, str) and found.startswith(_OURS)):
        return None
    if found != FORMAT:
        raise ValueError(f"the file is of a newer vqvae_fast: {found}, this one reads {FORMAT}")
    name, arguments, state = (checkpoint.get(key) for key in ("class", "arguments", "state"))
    if not (isinstance(name, str) and isinstance(arguments, dict) and isinstance(state, dict)):
        raise ValueError(
            "the file of vqvae-fast convert is damaged: it lacks class, arguments or state"
        )
    for kind, names in (("arguments", arguments), ("state", state)):
        if strange := [key for key in names if not isinstance(key, str)]:
            raise ValueError(f"the names of its {kind} must be strings, got {strange[0]!r}")
    check_tensors(state)
    return StoredQuantizer(name, arguments, state)


def arguments_beside(checkpoint: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Arguments of VectorQuantizer that stand in a VQ-VAE's checkpoint beside its weights.

    A run of ours has them under "model_config"; the reference VQ-VAE has its beta under
    "hyperparameters", and always the loss that we call legacy.
    """
    if place != _VQVAE:
        return {}
    config = checkpoint.get("model_config")
    if isinstance(config, dict):
        told = {name: config[name] for name in ("beta", "legacy") if name in config}
        return {**told, **config.get("quantizer", {})}
    if "hyperparameters" in checkpoint:
        return {"beta": reference_beta(dict(checkpoint)), "legacy": True}
    return {}
