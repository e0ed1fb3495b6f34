"""Reads checkpoint files: tensors and plain values, never code."""

import argparse
import errno
import os
import pickle
import re
import stat
import warnings
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvae_fast.regular_files import check_regular

# Where training scripts keep the weights; those averaged for use come first.
_WRAPPERS = ("ema", "best_state", "model", "state_dict", "model_state_dict", "module")

# Training scripts store figures as numpy arrays (the reference VQ-VAE's its loss curves), which
# torch's restricted unpickler refuses unless their (harmless) constructors are named. Files written
# under numpy 1 and numpy 2 name the same function differently.
_reconstruct: Any = np.empty(0).__reduce__()[0]
NUMPY_CONSTRUCTORS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
    (_reconstruct, "numpy._core.multiarray._reconstruct"),
    np.ndarray,
    np.dtype,
    type(np.dtype(np.float32)),
    type(np.dtype(np.float64)),
]

# No known training script nests deeper, and a checkpoint that holds itself must end the search.
_DEEPEST = 4


def read_file(path: str | PathLike[str]) -> Mapping[str, Any]:
    """The content of a .safetensors file, or of one written by torch.save.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
        ModuleNotFoundError: a .safetensors file, and the package for it is not installed.
        ValueError: it is a pipe, a socket or a device, it cannot be read, or it holds more than
            tensors and plain values.
    """
    if stat.S_ISDIR(os.stat(path).st_mode):
        raise IsADirectoryError(
            errno.EISDIR, "a checkpoint must be a file, this is a folder", os.fspath(path)
        )
    check_regular(path)
    if os.fspath(path).endswith(".safetensors"):
        content: Any = _read_safetensors(path)
    else:
        content = _read_torch(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold a state dict, got {type(content).__name__}")
    return content


def state_dict_in(checkpoint: Mapping[Any, Any], depth: int = 0) -> Mapping[Any, Any]:
    """The mapping with tensors, under the names that training scripts put around it."""
    for name in _WRAPPERS:
        inner = checkpoint.get(name) if depth < _DEEPEST else None
        if isinstance(inner, Mapping):
            found = state_dict_in(inner, depth + 1)
            if any(isinstance(value, Tensor) for value in found.values()):
                return found
    return checkpoint


def _read_torch(path: str | PathLike[str]) -> Any:
    # Harmless constructors beside tensors: figures as numpy arrays, options as a Namespace.
    harmless = [*NUMPY_CONSTRUCTORS, argparse.Namespace]
    try:
        with torch.serialization.safe_globals(harmless), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of its own ways of reading
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except MemoryError as error:
        raise ValueError(f"{path} asks for more memory than there is ({error})") from error
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks for {asked[1]}" if asked else "or it is damaged"
        raise ValueError(
            f"{path} holds more than tensors and plain values ({what}); nothing in it was "
            "executed; if you trust where it comes from, hand over its state dict instead"
        ) from error
    except Exception as error:
        if "TorchScript" in str(error):
            raise ValueError(
                f"{path} is a TorchScript archive, which holds code; save the state dict of its "
                "module instead"
            ) from error
        # Damaged bytes can raise anything.
        raise ValueError(f"{path} is not a file of torch.save, or is damaged") from error


def _read_safetensors(path: str | PathLike[str]) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ModuleNotFoundError(
            f"reading {path} needs safetensors: pip install safetensors", name="safetensors"
        ) from error
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or is damaged: {error}") from error
    return tensors
