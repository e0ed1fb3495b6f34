"""Builds the model of a run and sets its learning rate, as the quantizer's recipe decides."""

from vqvae_fast.errors import UserError
from vqvae_fast.models import VQVAE
from vqvae_fast.nn import VectorQuantizer
from vqvae_fast.recipes import Plan, Sizes, load_recipe
from vqvae_fast.training.config import TrainConfig
from vqvae_fast.training.data import ImageData


def vectors_per_step(config: TrainConfig, data: ImageData) -> int:
    """Number of vectors N that a training step quantizes."""
    return int(config.batch_size * (data.crop // 2**config.downsampling) ** 2)


def build_model(config: TrainConfig, data: ImageData) -> VQVAE:
    """The model of a run, in train mode on the CPU, initialised from torch's generator."""
    plan, quantizer = _plan(config, data), load_recipe(config.quantizer).quantizer
    dim = config.dim or plan.dim
    # VQVAE makes a VectorQuantizer unless another class is named.
    named = {} if quantizer is VectorQuantizer else {"class": quantizer.__name__}
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
            **plan.model,
            quantizer={**named, **plan.quantizer},
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    except (RuntimeError, MemoryError) as error:
        raise UserError(
            f"a model with {config.codebook_size} codes of length {dim} does not fit into memory"
        ) from error


def learning_rate(config: TrainConfig, data: ImageData, step: int) -> float:
    """The learning rate of a step, counted from 0.

    It is the config's until the cooling at the end of the run, if the recipe plans one; there it
    falls linearly to 0.
    """
    cooling = int(_plan(config, data).cooling * config.steps)
    return config.lr * (min(1.0, (config.steps - step) / cooling) if cooling else 1.0)


def _plan(config: TrainConfig, data: ImageData) -> Plan:
    sizes = Sizes(config.codebook_size, vectors_per_step(config, data), config.dim)
    return load_recipe(config.quantizer).plan(sizes)
