"""``vqvae-fast decode``."""

from pathlib import Path

import click

from vqvae_fast.cli.output import FILE_NAME, check_file, device_option, overwrite_option, run_option
from vqvae_fast.errors import UserError
from vqvae_fast.training.checkpoint import load_model
from vqvae_fast.training.codes import decoded_name, read_codes
from vqvae_fast.training.config import pick_device
from vqvae_fast.training.files import write_image
from vqvae_fast.training.reconstruct import decode_image


@click.command(context_settings={"show_default": True})
@click.argument("codes", type=FILE_NAME)
@run_option
@click.option(
    "-o",
    "--out",
    required=True,
    type=FILE_NAME,
    metavar="FOLDER",
    help="Folder to write the images to; it is made if it does not exist.",
)
@overwrite_option
@device_option
def decode(codes: Path, run: str, out: Path, overwrite: bool, device: str) -> None:
    """Decode CODES, a file of encode, into PNG files named and sized as the original images.

    RUN must be the run that encoded them, at the same step.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, a folder was expected")
    if not out.is_dir() and not out.parent.is_dir():
        raise UserError(f"there is no folder {out.parent} to make {out.name} in")
    model = load_model(run, pick_device(device))
    images = read_codes(codes, model)
    files = [out / decoded_name(image.name) for image in images]
    if len(set(files)) < len(files):
        raise UserError(f"{codes} is damaged: two of its images have the same name as a PNG file")
    # All files are checked before the first is written, so that none is written in vain.
    for file in files if out.is_dir() else ():
        check_file(file, overwrite)
    out.mkdir(exist_ok=True)
    for image, file in zip(images, files, strict=True):
        write_image(file, decode_image(model, image.indices, image.height, image.width))
    click.echo(f"images  {len(images)}")
    click.echo(f"saved   {out}")
