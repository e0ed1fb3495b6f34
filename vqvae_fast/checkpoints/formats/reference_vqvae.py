"""Reads checkpoints of the reference implementation, MishaLaskin/vqvae."""

import pickle
import re
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from vqvae_fast.checkpoints.files import NUMPY_CONSTRUCTORS
from vqvae_fast.regular_files import check_regular

_RESIDUAL = re.compile(r"(encoder|decoder)\.\w+\.\d+\.stack\.(\d+)\.(.+)")


def read_reference_checkpoint(
    path: str | PathLike[str],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments of :class:`vqvae_fast.models.VQVAE` and the state dict in a checkpoint.

    Args:
        path: file with ``{"model": state dict, "hyperparameters": {...}, ...}``.

    Returns:
        ``(config, state)``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such a checkpoint, or holds more than tensors and numbers.
    """
    problem = f"{path} is not a reference VQ-VAE checkpoint"
    check_regular(path)
    try:
        with torch.serialization.safe_globals(NUMPY_CONSTRUCTORS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{problem}: it holds more than tensors and numbers, or is damaged ({error})"
        ) from error
    except Exception as error:  # damaged bytes can raise anything
        raise ValueError(f"{problem}: it cannot be read ({error})") from error
    state = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{problem}: expected a dict with the state dict under 'model'")
    try:
        return {**_sizes(state), "beta": reference_beta(checkpoint), **_semantics(state)}, state
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise ValueError(f"{problem}: it lacks or misshapes a parameter ({error})") from error


def reference_beta(checkpoint: dict[str, Any]) -> float:
    """The beta that a checkpoint was trained with, or the reference's default if it has none."""
    hyperparameters = checkpoint.get("hyperparameters")
    return float(hyperparameters.get("beta", 0.25)) if isinstance(hyperparameters, dict) else 0.25


def _sizes(state: dict[str, Tensor]) -> dict[str, int]:
    n_embeddings, embedding_dim = state["vector_quantization.embedding.weight"].shape
    layers = [int(match[2]) for match in map(_RESIDUAL.fullmatch, state) if match]
    hidden = [t.shape[0] for name, t in state.items() if name.endswith("res_block.1.weight")]
    return {
        "h_dim": state["pre_quantization_conv.weight"].shape[1],
        "res_h_dim": hidden[0] if hidden else 1,
        "n_res_layers": max(layers, default=-1) + 1,
        "n_embeddings": n_embeddings,
        "embedding_dim": embedding_dim,
        "in_channels": state["encoder.conv_stack.0.weight"].shape[1],
    }


def _semantics(state: dict[str, Tensor]) -> dict[str, bool]:
    """The reference repeats one residual layer: its weights stand under the name of each."""
    shared = all(
        torch.equal(tensor, state[name.replace(f".stack.{match[2]}.", ".stack.0.")])
        for name, tensor in state.items()
        if (match := _RESIDUAL.fullmatch(name))
    )
    return {"legacy": True, "shared_residual": shared, "relu_skip": True}
