"""The two recipes of ``quantizer``: which model is built, and which optimizer drives it.

Codebooks with fewer codes than a step has vectors need no care beyond k-means and expiry. In larger
ones the average code is chosen once in many steps, and lies where the encoder was then: they get an
encoder that is bound to a sphere, and the end of the run to catch up with it. docs/scaling.md has
the figures.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from vqvae_fast.checkpoints.tensors import check_tensors
from vqvae_fast.errors import UserError
from vqvae_fast.models import VQVAE
from vqvae_fast.training.config import TrainConfig
from vqvae_fast.training.data import ImageData

# A code is dead below this share of the vectors that an average code gets. The encoder moves fast
# in the first steps and leaves most of k-means' codes behind. How soon they are replaced depends
# on this share alone: measured on the photographs (K 512, decay 0.99, seed 0), 474 codes are in
# use after 250 steps at a quarter, 123 at a fortieth, and the end is at 27.6 and 27.4 dB. A decay
# of 0.95 did no better.
_DEAD_SHARE = 0.25
# Length of a code. Measured with 4096 codes, before directions: 26.2 dB of 64 numbers, 27.4 of 16.
_DIM, _LARGE_DIM = 64, 16
# The averages of a large codebook remember each code's last three vectors, or more: with fewer,
# chance alone would make codes dead, and with more they lag behind the encoder. Measured with 65536
# codes, seed 0: 28.53 dB with three, 28.45 with eight, 28.30 with 32.
_VECTORS_REMEMBERED = 3
# Adam's averages with AMSGrad, each of its parameter's shape.
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
# Of its run, the share at the end in which the learning rate falls to 0.
_COOLING_SHARE = 0.5


def learning_rate(config: TrainConfig, data: ImageData, step: int) -> float:
    """Of a step, from 0: the config's; of a large codebook's run it falls linearly at the end."""
    cooling = int(_COOLING_SHARE * config.steps) if _is_large(config, data) else 0
    return config.lr * (min(1.0, (config.steps - step) / cooling) if cooling else 1.0)


def vectors_per_step(config: TrainConfig, data: ImageData) -> int:
    """Vectors of a step, N."""
    return int(config.batch_size * (data.crop // 2**config.downsampling) ** 2)


def _is_large(config: TrainConfig, data: ImageData) -> bool:
    """Whether the codebook learns by averages, and has more codes than a step has vectors."""
    return config.quantizer == "ema" and config.codebook_size > vectors_per_step(config, data)


def build_model(config: TrainConfig, data: ImageData) -> VQVAE:
    """The model of a run, in train mode on the CPU, initialised from torch's generator."""
    # "gradient" is the reference VQ-VAE in all it does: its loss (beta on the codebook term), one
    # residual layer repeated, skip connections behind the first ReLU.
    reference = config.quantizer == "gradient"
    large = _is_large(config, data)
    dim = config.dim or (_LARGE_DIM if large else _DIM)
    quantizer: dict[str, Any] = {"learning": config.quantizer}
    if not reference:
        choices = vectors_per_step(config, data) / config.codebook_size  # of a code, in the average
        quantizer |= {
            "decay": max(0.99, 1 - choices / _VECTORS_REMEMBERED),
            "kmeans_init": True,
            "dead_code_threshold": _DEAD_SHARE * choices,
        }
    try:
        return VQVAE(
            config.h_dim,
            config.res_h_dim,
            config.n_res_layers,
            config.codebook_size,
            dim,
            config.beta,
            in_channels=data.channels,
            downsampling=config.downsampling,
            legacy=reference,
            shared_residual=reference,
            relu_skip=reference,
            l2_norm=large and dim > 1,  # of one number it would leave the sign
            quantizer=quantizer,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    except (RuntimeError, MemoryError) as error:
        raise UserError(
            f"a model with {config.codebook_size} codes of length {dim} does not fit into memory"
        ) from error


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
    """Whether all weights and codes are, as a flag on the model's device."""
    return _all_finite([*model.parameters(), model.vector_quantization.codebook])


def moments_are_finite(optimizer: torch.optim.Optimizer) -> bool:
    """Whether Adam's averages are: squares of large gradients overflow, and stop all learning."""
    averages = [state[name] for state in optimizer.state.values() for name in _MOMENTS]
    return bool(_all_finite(averages)) if averages else True


@torch.no_grad()
def _all_finite(tensors: Iterable[Tensor]) -> Tensor:
    # aminmax passes a NaN on. It reads once and writes nothing: on a CPU it takes a tenth of the
    # time of isfinite, and torch's norm of the order inf takes longer still.
    extremes = [value for tensor in tensors for value in torch.aminmax(tensor)]
    return torch.stack(extremes).isfinite().all()
