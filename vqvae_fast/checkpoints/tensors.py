"""Checks the tensors of a checkpoint before anything computes with them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
IN_WORDS = "float64, float32, float16 or bfloat16"
# A file of a few bytes can hold a tensor of any shape whose elements all share one number: larger
# tensors than this are compared with the memory that they hold.
_EXPANDED = 2**30
# If sizes differ by no more than this, 1 GiB in float32, the module is made and torch names what
# differs.
_MUCH = 2**28
_NOTHING = torch.empty(0)
# The names, in our state dicts, of codes and of maps that lead to them. Averages may be NaN.
_WEIGHTS = ("embed", "weight", "frozen_codebook")


def check_tensors(entries: Mapping[str, Any]) -> None:
    """Raise ValueError unless all are plain tensors: dense, real, with all their numbers."""
    for name, tensor in entries.items():
        given = _kind(tensor)
        if given is not None:
            raise ValueError(f"{name} must be a dense tensor of {IN_WORDS}, got {given}")
        if (claimed := tensor.numel() * tensor.itemsize) > _EXPANDED:
            held = tensor.untyped_storage().nbytes()
            if claimed > held:
                raise ValueError(
                    f"{name} must hold what its shape says, got {list(tensor.shape)}, "
                    f"which is {claimed} bytes, and {held} bytes"
                )


def _kind(value: object) -> str | None:
    """What is wrong with a value, in few words; None for a tensor that is as it must be."""
    if not isinstance(value, Tensor):
        return f"a value of type {type(value).__name__}"
    if value.is_nested:
        return "a nested tensor"
    if value.layout != torch.strided:
        return f"a tensor of layout {value.layout}"
    if value.is_quantized:
        return f"a quantized tensor ({value.dtype})"
    if value.is_meta:
        return f"a tensor without data, {list(value.shape)} on the device meta"
    # Flags and counts are integers; Weights.shaped refuses those among codes.
    if value.dtype not in FLOATS and (value.is_floating_point() or value.is_complex()):
        return str(value.dtype)
    return None


def check_sizes(sketch: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError if a module would be far larger than the weights that are there for it.

    Args:
        sketch: the module on the device meta, where it takes no memory.
        state: its state dict, out of a file, whose arguments may ask for more than any machine has.
    """
    for name, tensor in sketch.state_dict().items():
        given = state.get(name, _NOTHING)
        if tensor.numel() - given.numel() > _MUCH:
            raise ValueError(f"{name} would be {list(tensor.shape)}, got {list(given.shape)}")


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Raise ValueError if a state dict of ours has codes or projections with NaN or Inf."""
    for name, tensor in state.items():
        if name.rpartition(".")[2] not in _WEIGHTS or not tensor.numel():
            continue
        low, high = torch.aminmax(tensor)  # NaN if there is one; no memory of the tensor's size
        if not (low.isfinite() and high.isfinite()):
            rows = tensor.flatten(0, -2) if tensor.dim() > 1 else tensor[None]
            bad = int((~rows.isfinite()).any(-1).sum())
            raise ValueError(
                f"{name} must be finite, got NaN or Inf in {bad} of {len(rows)} vectors"
            )
