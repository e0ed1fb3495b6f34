"""Builds Adam with AMSGrad, reads it from a checkpoint, and watches it for divergence."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from vqvae_fast.checkpoints.tensors import check_tensors
from vqvae_fast.models import VQVAE
from vqvae_fast.training.config import TrainConfig

# The averages that Adam with AMSGrad keeps of each parameter; each has the parameter's shape.
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def build_optimizer(config: TrainConfig, model: VQVAE) -> torch.optim.Optimizer:
    """Adam with AMSGrad, as the reference trains; an EMA codebook is no parameter of it."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.Adam(parameters, lr=config.lr, amsgrad=True)


def load_moments(optimizer: torch.optim.Optimizer, state: dict[str, Any], step: int) -> None:
    """Give the optimizer the averages that it had after ``step`` steps.

    The rest of its state, learning rate and so on, is the config's.

    Raises:
        ValueError: averages are missing, or not those of these parameters.
    """
    stored = state.get("state")
    groups = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    expected = range(len(parameters) if step else 0)  # before the first step there are none
    if not isinstance(stored, dict) or set(stored) != set(expected):
        raise ValueError(f"optimizer must hold the averages of {len(expected)} parameters")
    for number, parameter in zip(expected, parameters, strict=False):
        averages = stored[number]
        if not isinstance(averages, dict) or set(averages) != {"step", *_MOMENTS}:
            raise ValueError(f"optimizer must hold step, {', '.join(_MOMENTS)} of each parameter")
        for name, tensor in averages.items():
            shape = parameter.shape if name in _MOMENTS else torch.Size()
            if not isinstance(tensor, Tensor) or tensor.shape != shape:
                raise ValueError(f"{name} of parameter {number} must be a tensor {list(shape)}")
        check_tensors({f"{name} of parameter {number}": averages[name] for name in averages})
        if not all(averages[name].is_floating_point() for name in _MOMENTS):
            raise ValueError(f"the averages of parameter {number} must be floats")
        if (averages["exp_avg_sq"] < 0).any():
            raise ValueError(f"exp_avg_sq of parameter {number} must not be negative")
        if averages["step"] != step:
            raise ValueError(f"optimizer must have done {step} steps")
    optimizer.load_state_dict({"state": stored, "param_groups": groups})


def is_finite(model: VQVAE) -> Tensor:
    """Whether all weights and codes are finite, as a flag on the model's device."""
    return _all_finite([*model.parameters(), model.vector_quantization.codebook])


def moments_are_finite(optimizer: torch.optim.Optimizer) -> bool:
    """Whether Adam's averages are finite; squares of large gradients overflow, and end learning."""
    averages = [state[name] for state in optimizer.state.values() for name in _MOMENTS]
    return bool(_all_finite(averages)) if averages else True


@torch.no_grad()
def _all_finite(tensors: Iterable[Tensor]) -> Tensor:
    # aminmax returns a NaN if there is one. It reads once and writes nothing: on a CPU it takes a
    # tenth of the time of isfinite; torch's norm of the order inf takes even longer.
    extremes = [value for tensor in tensors for value in torch.aminmax(tensor)]
    return torch.stack(extremes).isfinite().all()
