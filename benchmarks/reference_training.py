"""The training loop of the reference article, rebuilt in plain PyTorch (see reference_vqvae)."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from tqdm import tqdm

from benchmarks.reference_vqvae import ReferenceVQVAE, reference_optimizer
from vqvae_fast.training.pixel_scale import mse_of_pixels


class Trained(NamedTuple):
    """A trained reference model in eval mode, the seconds that its steps took, and their errors.

    ``curve`` has (step, mean squared error of the batch, on pixels in [0, 1]) for every tenth step.
    """

    model: ReferenceVQVAE
    seconds: float
    curve: list[tuple[int, float]]


def train_reference(
    batch: Callable[[int], Tensor], variance: float, steps: int, seed: int
) -> Trained:
    """Train with the article's settings: width 128, K 512, D 64, Adam with amsgrad at 3e-4.

    Args:
        batch: step -> crops [B, 3, 32, 32] in [-1, 1].
        variance: the variance of the training data on that scale, which divides the reconstruction
            error.
        steps: number of batches.
        seed: the seed of the initial weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ReferenceVQVAE().train()
    optimizer = reference_optimizer(model)
    curve = []
    start = time.monotonic()
    for step in tqdm(range(steps), desc=f"reference, seed {seed}", unit="step", disable=None):
        x = batch(step)
        optimizer.zero_grad()
        output = model(x)
        error = F.mse_loss(output.x_hat, x)
        (error / variance + output.embedding_loss).backward()
        optimizer.step()
        if (step + 1) % 10 == 0:
            curve.append((step + 1, mse_of_pixels(float(error.detach()))))
    return Trained(model.eval(), time.monotonic() - start, curve)
