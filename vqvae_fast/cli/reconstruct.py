"""``vqvae-fast reconstruct``."""

from pathlib import Path

import click

from vqvae_fast.cli.output import (
    FILE_NAME,
    check_file,
    device_option,
    overwrite_option,
    run_option,
)
from vqvae_fast.training.checkpoint import load_model
from vqvae_fast.training.config import pick_device
from vqvae_fast.training.evaluation import psnr
from vqvae_fast.training.files import check_format, read_image, write_image
from vqvae_fast.training.reconstruct import reconstruct_image


@click.command(context_settings={"show_default": True})
@click.argument("image", type=FILE_NAME)
@run_option
@click.option(
    "-o",
    "--out",
    required=True,
    type=FILE_NAME,
    metavar="FILE",
    help="Image file to write.",
)
@overwrite_option
@device_option
def reconstruct(image: Path, run: str, out: Path, overwrite: bool, device: str) -> None:
    """Encode IMAGE into codes, decode them again, and save what comes back.

    The image may have any size.
    """
    check_file(out, overwrite, [image])
    check_format(out)
    model = load_model(run, pick_device(device))
    pixels = read_image(image, model.config["in_channels"])
    result = reconstruct_image(model, pixels)
    write_image(out, result.pixels)
    height, width = pixels.shape[:2]
    click.echo(f"image  {width}x{height} pixels")
    click.echo(f"codes  {result.latents}, each one of {model.config['n_embeddings']}")
    click.echo(f"PSNR   {psnr(result.mse):.2f} dB")
    click.echo(
        f"rate   {result.bits_per_pixel:.4f} bits per pixel "
        f"({result.latents} codes x log2 {model.config['n_embeddings']} / {width * height} pixels)"
    )
    click.echo(f"saved  {out}")
