"""``vqvae-fast encode``."""

from pathlib import Path

import click

from vqvae_fast.cli.output import FILE_NAME, check_file, device_option, overwrite_option, run_option
from vqvae_fast.errors import UserError
from vqvae_fast.training.checkpoint import load_model
from vqvae_fast.training.codes import ImageCodes, decoded_name, write_codes
from vqvae_fast.training.config import pick_device
from vqvae_fast.training.files import read_image
from vqvae_fast.training.reconstruct import encode_image


@click.command(context_settings={"show_default": True})
@click.argument("images", nargs=-1, required=True, type=FILE_NAME)
@run_option
@click.option(
    "-o",
    "--out",
    required=True,
    type=FILE_NAME,
    metavar="FILE.npz",
    help="File of codes to write.",
)
@overwrite_option
@device_option
def encode(images: tuple[Path, ...], run: str, out: Path, overwrite: bool, device: str) -> None:
    """Encode IMAGES, of any sizes, into one file of codes; decode turns it into images again."""
    if out.suffix != ".npz":
        raise UserError(f"{out} must end in .npz")
    check_file(out, overwrite, images)
    _check_names(images)
    model = load_model(run, pick_device(device))
    codes, pixels = [], 0
    for path in images:
        image = read_image(path, model.config["in_channels"])
        height, width = image.shape[:2]
        codes.append(ImageCodes(path.name, height, width, encode_image(model, image)))
        pixels += height * width
    write_codes(out, model, codes)
    count, size = sum(image.indices.numel() for image in codes), out.stat().st_size
    click.echo(f"images  {len(codes)}")
    click.echo(f"codes   {count}, each one of {model.config['n_embeddings']}")
    click.echo(f"rate    {8 * size / pixels:.4f} bits per pixel ({size} bytes)")
    click.echo(f"saved   {out}")


def _check_names(images: tuple[Path, ...]) -> None:
    """Check that the names of the decoded images, those of the originals, are valid and differ."""
    seen: dict[str, Path] = {}
    for path in images:
        decoded = decoded_name(path.name)
        if decoded in seen:
            raise UserError(
                f"{seen[decoded]} and {path} would both be decoded to {decoded}; "
                "encode them into separate files"
            )
        seen[decoded] = path
