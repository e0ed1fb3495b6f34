"""Draws the pictures of a run, without pyplot: it would open windows and keep global state."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray
from torch import Tensor

from vqvae_fast.atomic import atomic_file
from vqvae_fast.models import VQVAE
from vqvae_fast.training.evaluation import Evaluation, psnr
from vqvae_fast.training.pixel_scale import mse_of_pixels, to_pixels
from vqvae_fast.training.runfolder import Row

# Okabe and Ito's colours, which colour-blind readers tell apart as well.
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#666666"
# A curve with fewer points than this gets a marker at each.
_FEW = 20


@torch.no_grad()
def save_reconstructions(
    path: Path, model: VQVAE, tiles: Sequence[Tensor], held_out_psnr: float
) -> None:
    """Originals above their reconstructions.

    Args:
        path: the PNG to write.
        model: in eval mode.
        tiles: held-out images [C, side, side] float32 in [-1, 1].
        held_out_psnr: of the whole held-out set, for the title, in dB.
    """
    device = next(model.parameters()).device
    x = torch.stack(list(tiles))
    # The model takes one tile at a time: eight large ones might not fit into memory together.
    x_hat = torch.cat([model(tile[None].to(device))[1].float().cpu() for tile in x])
    errors = mse_of_pixels((x_hat - x).square().mean(dim=(1, 2, 3)))
    figure = Figure(figsize=(1.35 * len(x) + 0.7, 3.3), dpi=150, layout="constrained")
    figure.suptitle(f"Images the model was not trained on (held-out PSNR {held_out_psnr:.1f} dB)")
    axes: NDArray[np.object_] = figure.subplots(2, len(x), squeeze=False)
    for column in range(len(x)):
        for row, image in enumerate((x[column], x_hat[column])):
            _show(axes[row, column], image)
        axes[1, column].set_xlabel(f"{psnr(float(errors[column])):.1f} dB", fontsize=9)
    axes[0, 0].set_ylabel("original")
    axes[1, 0].set_ylabel("reconstruction")
    _save(figure, path)


def save_curves(path: Path, rows: Sequence[Row], num_codes: int) -> None:
    """Loss, reconstruction error, perplexity and codes used over the steps.

    Args:
        path: the PNG to write.
        rows: lines of metrics.jsonl.
        num_codes: K, the number of codes.
    """
    figure = Figure(figsize=(9, 6), dpi=150, layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    loss, error, effective, used = axes.flat
    _curve(loss, rows, "loss", "training")
    loss.set(title="Loss", ylabel="MSE / variance + embedding loss")
    _curve(error, rows, "mse", "training")
    _curve(error, rows, "held_out_mse", "held out", _ORANGE)
    error.set(title="Reconstruction error", ylabel="MSE (pixels in 0 to 1)")
    _log_axis(loss)
    _log_axis(error)
    _curve(effective, rows, "perplexity", "training")
    effective.set(title="Perplexity of a batch", ylabel="effective codes")
    _curve(used, rows, "codes_used", "training")
    _curve(used, rows, "held_out_codes_used", "held out", _ORANGE)
    used.axhline(num_codes, color=_GREY, linestyle=":", label=f"codebook size {num_codes}")
    used.set(title="Codes in use", ylabel="codes", ylim=(0, num_codes * 1.08))
    effective.set_ylim(bottom=0)
    for axis in axes[1]:
        axis.set_xlabel("steps")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        if len(axis.lines) > 1:
            axis.legend(frameon=False)
    _save(figure, path)


def save_usage(path: Path, training: Evaluation, held_out: Evaluation) -> None:
    """Histogram of the codebook: how often each code is chosen, the most frequent first.

    Args:
        path: the PNG to write.
        training: figures on training crops.
        held_out: figures on held-out crops.
    """
    num_codes = len(held_out.counts)
    figure = Figure(figsize=(8, 4), dpi=150, layout="constrained")
    axis = figure.subplots()
    ranks = np.arange(1, num_codes + 1)
    # The axis begins just below the share of a code that is chosen once.
    lowest = 50 / max(int(training.counts.sum()), int(held_out.counts.sum()), 1)
    for evaluation, name, colour in (
        (training, "training", _BLUE),
        (held_out, "held-out", _ORANGE),
    ):
        counts = np.sort(evaluation.counts.cpu().numpy())[::-1]
        share = 100 * counts / max(counts.sum(), 1)
        label = (
            f"{name} crops: {evaluation.codes_used} of {num_codes} codes in use, "
            f"perplexity {evaluation.perplexity:.0f}"
        )
        # A logarithmic axis cannot show unused codes: the line ends before them.
        visible = np.where(share > 0, share, np.nan)
        axis.step(ranks, visible, where="mid", color=colour, label=label)
        if evaluation is training:
            axis.fill_between(ranks, visible, lowest, step="mid", color=colour, alpha=0.2)
    _log_axis(axis)
    axis.axhline(100 / num_codes, color=_GREY, linestyle=":", label="if all were used equally")
    axis.set(
        title="Use of the codebook",
        xlabel="codes, the most frequent first",
        ylabel="share of all latent vectors (%)",
        xlim=(0.5, num_codes + 0.5),
        ylim=(lowest, None),
    )
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    _save(figure, path)


def _show(axis: Axes, image: Tensor) -> None:
    pixels = to_pixels(image)
    axis.imshow(
        pixels[..., 0] if pixels.shape[2] == 1 else pixels,
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation="nearest",
    )
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _curve(
    axis: Axes,
    rows: Sequence[Row],
    key: str,
    label: str,
    colour: str = _BLUE,
) -> None:
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    if points:
        # A line through one point is invisible.
        style = "o-" if len(points) < _FEW else "-"
        axis.plot(*zip(*points, strict=True), style, color=colour, markersize=4, label=label)


def _log_axis(axis: Axes) -> None:
    """A logarithmic y axis with plain numbers at 1, 2 and 5 of each decade."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _save(figure: Figure, path: Path) -> None:
    with atomic_file(path) as temporary:
        figure.savefig(temporary)
