"""Writes checkpoints atomically, and reads them without running any code in them."""

import textwrap
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqvae_fast.atomic import atomic_file
from vqvae_fast.checkpoints.tensors import check_sizes, check_tensors
from vqvae_fast.errors import UserError, check_input
from vqvae_fast.models import VQVAE
from vqvae_fast.training.config import MOST
from vqvae_fast.training.optimizer import is_finite
from vqvae_fast.training.runfolder import CHECKPOINT, open_run

_FORMAT = 1
_LONGEST_MESSAGE = 250
_TYPES: dict[str, type] = {
    "model_config": dict,
    "model": dict,
    "optimizer": dict,
    "step": int,
    "random": list,
    "window": dict,
    "variance": float,
}


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators, from which a step may draw."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Set torch's generators to a saved state.

    A run that continues on another kind of device cannot repeat the numbers of the first one: the
    generator of the new device keeps its seed.

    Raises:
        ValueError: ``state`` does not hold the states of generators.
    """
    try:
        torch.set_rng_state(state["cpu"])
        if device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], device)
    except (RuntimeError, TypeError, AttributeError, LookupError) as error:
        raise ValueError("random must hold the states of torch's generators") from error


def save_checkpoint(run: Path, state: dict[str, Any]) -> None:
    """Replace the run's checkpoint by ``state``: tensors, numbers, strings and dicts of them."""
    try:
        with atomic_file(run / CHECKPOINT) as temporary:
            torch.save({"format": _FORMAT, **state}, temporary)
    except RuntimeError as error:  # torch raises it if the disk is full
        raise UserError(f"{run / CHECKPOINT} cannot be written; is the disk full?") from error


def load_checkpoint(run: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a run's checkpoint.

    Raises:
        UserError: the file is truncated, damaged, or not a checkpoint of this program.
    """
    path = run / CHECKPOINT
    check_input(path, "checkpoint")
    state = _read(path, device)
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise UserError(f"{path} is not a checkpoint of vqvae-fast train")
    missing = [key for key in _TYPES if key not in state]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}")
    for key, kind in _TYPES.items():
        if type(state[key]) is not kind and not (kind is dict and isinstance(state[key], dict)):
            given = type(state[key]).__name__
            raise UserError(f"{path} is damaged: {key} must be {kind.__name__}, got {given}")
    if state["step"] < 0 or not state["random"]:
        raise UserError(f"{path} is damaged: its step is negative, or it has no random states")
    return state


def _read(path: Path, device: torch.device | str) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                # A small compressed file could ask for any amount of memory.
                raise UserError(f"{path} is not a checkpoint of vqvae-fast train: it is compressed")
            # torch does not compare checksums when it reads.
            damaged = archive.testzip()
        if damaged is not None:
            raise UserError(f"{path} is damaged: the checksum of {damaged} is wrong")
        return torch.load(path, map_location=device, weights_only=True)
    except (UserError, torch.OutOfMemoryError):
        raise
    except MemoryError as error:
        raise UserError(f"{path} asks for more memory than there is") from error
    except Exception as error:  # damaged bytes can raise anything
        raise UserError(f"{path} is truncated or not a checkpoint at all") from error


def load_model(run: str | Path, device: torch.device | str = "cpu") -> VQVAE:
    """The trained model of a run folder, in eval mode.

    Args:
        run: a run folder of ``vqvae-fast train``.
        device: where to put the model.

    Raises:
        UserError: ``run`` is not a run folder, or its checkpoint cannot be read.
    """
    path = open_run(run)
    return model_from(load_checkpoint(path, device), path).to(device).eval()


def model_from(state: dict[str, Any], run: Path) -> VQVAE:
    """Rebuild the model of a checkpoint, on the CPU."""
    path, config, weights = run / CHECKPOINT, state["model_config"], state["model"]
    try:
        for name, most in MOST.items():
            if config[name] > most:
                raise ValueError(f"{name} must be at most {most}, got {config[name]}")
        check_tensors(weights)
        with torch.device("meta"):
            check_sizes(VQVAE(**config), weights)
        model = VQVAE(**config)
        load_weights(model, weights)
    except (RuntimeError, TypeError, ValueError, KeyError, OverflowError) as error:
        raise UserError(f"{path} does not fit the model: {error}") from error
    return model


def load_weights(model: VQVAE, weights: dict[str, Tensor]) -> None:
    """Call ``model.load_state_dict`` with weights out of a file, which are checked first.

    Raises:
        ValueError: they are not finite weights of such a model.
    """
    if strange := [name for name in weights if not isinstance(name, str)]:
        raise ValueError(f"the names of weights must be strings, got {strange[0]!r}")
    check_tensors(weights)
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        what = textwrap.shorten(str(error), _LONGEST_MESSAGE)  # torch lists every difference
        raise ValueError(f"the weights are of another model: {what}") from error
    if not is_finite(model):
        raise ValueError("a weight or a code is NaN or Inf")
