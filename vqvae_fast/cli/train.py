"""``vqvae-fast train``."""

from typing import Any

import click
from click.core import ParameterSource

from vqvae_fast.cli import INTERRUPTED
from vqvae_fast.recipes import load_recipe, recipe_names
from vqvae_fast.training import TrainConfig, TrainResult
from vqvae_fast.training import resume as resume_run
from vqvae_fast.training import train as train_run
from vqvae_fast.training.processes import is_first, launched

_DEFAULT = TrainConfig()
# The options that may come with --resume; all others are the run's own.
_WITH_RESUME = {"resume", "steps", "device", "progress"}


@click.command(context_settings={"show_default": True})
@click.option(
    "--data",
    default=_DEFAULT.data,
    metavar="SOURCE",
    help="photos, a folder of images, cifar10:FOLDER (binary version), FILE.npy or FILE.npz.",
)
@click.option(
    "--photographs",
    default=",".join(_DEFAULT.photographs),
    metavar="NAMES",
    help="The photographs of --data photos, separated by commas.",
)
@click.option(
    "--crop",
    type=int,
    metavar="PIXELS",
    show_default="32, or the whole of smaller images in arrays",
    help="Side of the random crops.",
)
@click.option(
    "--held-out",
    type=float,
    default=_DEFAULT.held_out,
    metavar="SHARE",
    help="Share of the data that is never trained on: the right part of each large image.",
)
@click.option(
    "--quantizer",
    type=click.Choice(recipe_names()),
    default=_DEFAULT.quantizer,
    help="How the codebook learns. "
    + " ".join(f"{name}: {load_recipe(name).help}." for name in recipe_names()),
)
@click.option("--codebook-size", type=int, default=_DEFAULT.codebook_size, metavar="K")
@click.option(
    "--dim",
    type=int,
    metavar="D",
    show_default="64, or 16 for a codebook of more codes than a step has vectors",
    help="Length of a code.",
)
@click.option("--batch-size", type=int, default=_DEFAULT.batch_size, metavar="N")
@click.option("--steps", type=int, default=_DEFAULT.steps, metavar="N")
@click.option("--lr", type=float, default=_DEFAULT.lr, metavar="RATE", help="Adam's learning rate.")
@click.option("--seed", type=int, default=_DEFAULT.seed, metavar="N")
@click.option(
    "--device",
    default=_DEFAULT.device,
    help="auto (a GPU if there is one), cpu, cuda or cuda:N.",
)
@click.option("--dtype", type=click.Choice(["float32", "bf16"]), default=_DEFAULT.dtype)
@click.option("--compile", is_flag=True, help="Run the training step through torch.compile.")
@click.option(
    "--out",
    metavar="FOLDER",
    show_default="runs/DATA-QUANTIZER-NUMBER",
    help="A new or empty folder for the run.",
)
@click.option(
    "--resume",
    metavar="RUN",
    help="Continue a run from its checkpoint; --steps N trains it longer.",
)
@click.option(
    "--progress/--no-progress",
    default=None,
    show_default="a bar in a terminal, lines elsewhere",
    help="Show a progress bar.",
)
@click.pass_context
def train(
    context: click.Context,
    /,
    resume: str | None,
    progress: bool | None,
    **options: Any,
) -> int:
    """Train a VQ-VAE on images.

    Leaves a run folder with the model, its figures and pictures of them. Ctrl-C stops a run after
    the step in progress, with a checkpoint to --resume from. Several processes or GPUs share a run
    with: torchrun --nproc-per-node N -m vqvae_fast.cli train ...
    """
    given = {
        name
        for name in context.params
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    with launched():
        if resume is None:
            result = train_run(_config(options, given), progress=progress, say=click.echo)
        else:
            changes = _changes(options, given)
            result = resume_run(resume, progress=progress, say=click.echo, **changes)
        if is_first():
            _report(result)
    return INTERRUPTED if result.interrupted else 0


def _config(options: dict[str, Any], given: set[str]) -> TrainConfig:
    """The config of a new run; ``given`` names the options that the user has typed."""
    if "photographs" in given and options["data"] != _DEFAULT.data:
        raise click.UsageError("--photographs goes with --data photos only")
    names = tuple(options["photographs"].replace(",", " ").split())
    return TrainConfig(**{**options, "photographs": names})


def _changes(options: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """What the user changes in a run that continues."""
    refused = sorted(given - _WITH_RESUME)
    if refused:
        names = ", ".join("--" + name.replace("_", "-") for name in refused)
        raise click.UsageError(
            f"--resume takes its settings from the run: {names} cannot be given with it"
        )
    return {name: options[name] for name in ("steps", "device") if name in given}


def _report(result: TrainResult) -> None:
    """Print how the run ended."""
    if result.interrupted:
        click.echo(
            f"stopped at step {result.step}; continue with: vqvae-fast train --resume {result.run}",
            err=True,
        )
        return
    if result.held_out is None or result.training is None:
        click.echo(
            f"step {result.step}: k-means has not collected its vectors, and there are no codes; "
            f"continue with: vqvae-fast train --resume {result.run} --steps N"
        )
        return
    codes = len(result.held_out.counts)
    minutes, seconds = divmod(round(result.seconds), 60)
    click.echo(
        f"\nheld out  PSNR {result.held_out.psnr:.2f} dB, MSE {result.held_out.mse:.6f} "
        "(pixel values in 0 to 1)\n"
        f"codes     {result.training.codes_used} of {codes} in use in the last training batches, "
        f"{result.held_out.codes_used} on held-out crops\n"
        f"time      {minutes} min {seconds} s to step {result.step}\n"
        f"pictures  {result.run}/reconstructions.png, curves.png, usage.png\n"
        f"try it    vqvae-fast reconstruct IMAGE --run {result.run} -o OUT.png"
    )
