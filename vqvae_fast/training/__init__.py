"""Training a VQ-VAE from Python: the same as ``vqvae-fast train``.

    from vqvae_fast.training import TrainConfig, train
    result = train(TrainConfig(steps=500), my_dataset)

Needs the extra ``pip install vqvae_fast[train]``. A name is imported when it is first asked for, so
that decoding an image does not import what training draws its pictures with.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from vqvae_fast.extras import needs_extra

if TYPE_CHECKING:
    from vqvae_fast.errors import UserError
    from vqvae_fast.training.checkpoint import load_model
    from vqvae_fast.training.config import TrainConfig
    from vqvae_fast.training.data import ImageData, open_data
    from vqvae_fast.training.evaluation import Evaluation, evaluate
    from vqvae_fast.training.run import TrainResult, resume, train

__all__ = [
    "Evaluation",
    "ImageData",
    "TrainConfig",
    "TrainResult",
    "UserError",
    "evaluate",
    "load_model",
    "open_data",
    "resume",
    "train",
]

_MODULES = {
    "Evaluation": "vqvae_fast.training.evaluation",
    "ImageData": "vqvae_fast.training.data",
    "TrainConfig": "vqvae_fast.training.config",
    "TrainResult": "vqvae_fast.training.run",
    "UserError": "vqvae_fast.errors",
    "evaluate": "vqvae_fast.training.evaluation",
    "load_model": "vqvae_fast.training.checkpoint",
    "open_data": "vqvae_fast.training.data",
    "resume": "vqvae_fast.training.run",
    "train": "vqvae_fast.training.run",
}

if not TYPE_CHECKING:  # a type checker would believe that every name exists

    def __getattr__(name: str) -> object:
        """Import a public name; a MissingExtraError names the extra where a package is missing."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with needs_extra("train", f"{__name__}.{name}"):
            value = getattr(import_module(_MODULES[name]), name)
        globals()[name] = value
        return value
