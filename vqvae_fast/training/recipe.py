"""The two recipes of ``quantizer``: which model is built, which optimizer drives it."""

from typing import Any

import torch

from vqvae_fast.models import VQVAE
from vqvae_fast.training.config import TrainConfig
from vqvae_fast.training.errors import UserError

_EMA: dict[str, Any] = {
    "learning": "ema",
    "decay": 0.99,
    "kmeans_init": True,
    "dead_code_threshold": 0.1,
}


def build_model(config: TrainConfig, channels: int) -> VQVAE:
    """The model of a run, in train mode on the CPU, initialised from torch's generator."""
    # "gradient" is the reference VQ-VAE in all it does: its loss (beta on the codebook term), one
    # residual layer repeated, skip connections behind the first ReLU.
    reference = config.quantizer == "gradient"
    try:
        return VQVAE(
            config.h_dim,
            config.res_h_dim,
            config.n_res_layers,
            config.codebook_size,
            config.dim,
            config.beta,
            in_channels=channels,
            downsampling=config.downsampling,
            legacy=reference,
            shared_residual=reference,
            relu_skip=reference,
            quantizer={"learning": "gradient"} if reference else _EMA,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def build_optimizer(config: TrainConfig, model: VQVAE) -> torch.optim.Optimizer:
    """Adam with AMSGrad, as the reference trains; an EMA codebook is no parameter of it."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.Adam(parameters, lr=config.lr, amsgrad=True)
