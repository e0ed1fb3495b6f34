"""Our own files: those of ``vqvae-fast convert``, and runs of ``vqvae-fast train``."""

from collections.abc import Mapping
from typing import Any

from vqvae_fast.checkpoints.formats.reference_vqvae import reference_beta
from vqvae_fast.checkpoints.stored import FORMAT, StoredQuantizer
from vqvae_fast.checkpoints.tensors import check_tensors

# What the names of the weights of a VQ-VAE's quantizer begin with.
PLACE = "vector_quantization."
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


def read_run(checkpoint: Mapping[str, Any]) -> StoredQuantizer | None:
    """The quantizer in a checkpoint of ``vqvae-fast train`` that names its class.

    Returns None for all other checkpoints, among them runs with a VectorQuantizer: these record no
    class, and are read as a layout of weights, with :func:`arguments_beside`.
    """
    config, weights = checkpoint.get("model_config"), checkpoint.get("model")
    arguments = config.get("quantizer") if isinstance(config, dict) else None
    name = arguments.get("class") if isinstance(arguments, dict) else None
    if not (isinstance(name, str) and isinstance(weights, Mapping)):
        return None
    assert isinstance(config, dict)
    assert isinstance(arguments, dict)
    ours = {"n_e": "n_embeddings", "e_dim": "embedding_dim", "beta": "beta"}
    if missing := [of_model for of_model in ours.values() if of_model not in config]:
        raise ValueError(f"model_config of the checkpoint lacks {', '.join(missing)}")
    sizes = {argument: config[of_model] for argument, of_model in ours.items()}
    others = {argument: value for argument, value in arguments.items() if argument != "class"}
    state = {
        weight.removeprefix(PLACE): tensor
        for weight, tensor in weights.items()
        if isinstance(weight, str) and weight.startswith(PLACE)
    }
    check_tensors(state)
    return StoredQuantizer(name, {**sizes, **others}, state)


def arguments_beside(checkpoint: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Arguments of VectorQuantizer that stand in a VQ-VAE's checkpoint beside its weights.

    A run of ours has them under "model_config"; the reference VQ-VAE has its beta under
    "hyperparameters", and always the loss that we call legacy.
    """
    if place != PLACE:
        return {}
    config = checkpoint.get("model_config")
    if isinstance(config, dict):
        told = {name: config[name] for name in ("beta", "legacy") if name in config}
        return {**told, **config.get("quantizer", {})}
    if "hyperparameters" in checkpoint:
        return {"beta": reference_beta(dict(checkpoint)), "legacy": True}
    return {}
