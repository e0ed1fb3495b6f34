"""Checkpoints: written whole or not at all, read without running any code in them."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqvae_fast.models import VQVAE
from vqvae_fast.training.errors import UserError
from vqvae_fast.training.runfolder import CHECKPOINT, atomic_file, open_run

_FORMAT = 1
_KEYS = ("model_config", "model", "optimizer", "step", "random", "window", "variance")


def random_state(device: torch.device) -> dict[str, Tensor]:
    """State of torch's generators that a step may draw from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Take the generators back to a saved state.

    A run that continues on another kind of device cannot repeat the numbers of the first one;
    there the generator stays as it was seeded.
    """
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def save_checkpoint(run: Path, state: dict[str, Any]) -> None:
    """Replace the run's checkpoint by ``state``: tensors, numbers, strings and dicts of them."""
    try:
        with atomic_file(run / CHECKPOINT) as temporary:
            torch.save({"format": _FORMAT, **state}, temporary)
    except RuntimeError as error:  # torch's way of telling that the disk is full
        raise UserError(f"{run / CHECKPOINT} cannot be written; is the disk full?") from error


def load_checkpoint(run: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a run's checkpoint.

    Raises:
        UserError: the file is truncated, damaged, or not a checkpoint of this program.
    """
    path = run / CHECKPOINT
    try:
        with zipfile.ZipFile(path) as archive:
            # torch does not compare checksums when it reads.
            damaged = archive.testzip()
        if damaged is not None:
            raise UserError(f"{path} is damaged: the checksum of {damaged} is wrong")
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is truncated or not a checkpoint at all") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise UserError(f"{path} is not a checkpoint of vqvae-fast train")
    missing = [key for key in _KEYS if key not in state]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}")
    return state


def load_model(run: str | Path, device: torch.device | str = "cpu") -> VQVAE:
    """The trained model of a run folder, in eval mode.

    Args:
        run: a run folder of ``vqvae-fast train``.
        device: where to put the model.

    Raises:
        UserError: not a run folder, or its checkpoint cannot be read.
    """
    path = open_run(run)
    return model_from(load_checkpoint(path, device), path).to(device).eval()


def model_from(state: dict[str, Any], run: Path) -> VQVAE:
    """Rebuild the model of a checkpoint, on the CPU."""
    try:
        model = VQVAE(**state["model_config"])
        model.load_state_dict(state["model"])
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{run / CHECKPOINT} does not fit the model: {error}") from error
    return model
