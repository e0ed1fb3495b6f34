"""Measures a model on fixed images: reconstruction error, PSNR, codes used."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vqvae_fast.models import VQVAE
from vqvae_fast.nn import code_counts, perplexity
from vqvae_fast.training.pixel_scale import mse_of_pixels
from vqvae_fast.training.processes import share, total


class Evaluation(NamedTuple):
    """Figures of a model on some images.

    Attributes:
        mse: mean squared error of pixel values in [0, 1].
        psnr: ``10 log10(1 / mse)`` in dB.
        perplexity: effective number of codes, over all images together.
        codes_used: number of codes chosen at least once.
        counts: [K] how often each was chosen.
    """

    mse: float
    psnr: float
    perplexity: float
    codes_used: int
    counts: Tensor


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of values in [0, 1]."""
    return math.inf if mse == 0 else -10 * math.log10(mse)


@torch.no_grad()
def evaluate(
    model: VQVAE,
    images: Tensor,
    *,
    batch_size: int = 32,
    autocast: torch.dtype | None = None,
    divided: bool = False,
) -> Evaluation:
    """Measure a model on images; it learns nothing from them.

    Args:
        model: it stays in its mode, training or eval.
        images: [N, C, H, W] float32 in [-1, 1], on any device.
        batch_size: images per forward pass.
        autocast: run the convolutions in this dtype; the error is measured in float32.
        divided: each process of torch.distributed takes its share of the images, and all get the
            figures of all.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    # The sum is float64, so that the result does not depend on how the images are batched.
    squares = torch.zeros((), dtype=torch.float64, device=device)
    counts = torch.zeros(model.config["n_embeddings"], dtype=torch.int64, device=device)
    mine = images[share(len(images))] if divided else images
    for batch in mine.split(batch_size):
        x = batch.to(device)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            output = model.forward_with_indices(x)
        squares += (output.x_hat.float() - x).square().double().sum()
        counts += code_counts(output.indices, len(counts))
    model.train(was_training)
    if divided:
        squares, counts = total(squares), total(counts)
    mse = mse_of_pixels(float(squares) / images.numel())
    return Evaluation(mse, psnr(mse), float(perplexity(counts)), int((counts > 0).sum()), counts)
