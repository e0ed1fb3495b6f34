"""Training a VQ-VAE from Python: the same as ``vqvae-fast train``.

    from vqvae_fast.training import TrainConfig, train
    result = train(TrainConfig(steps=500), my_dataset)

Needs the extra ``pip install vqvae_fast[train]``.
"""

# ruff: noqa: E402  (what is missing is told before an import fails on it)
from vqvae_fast.extras import check_extras

check_extras()

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
