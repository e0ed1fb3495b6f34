"""``vqvae-fast convert``."""

from pathlib import Path

import click

from vqvae_fast.atomic import atomic_file
from vqvae_fast.checkpoints import read_quantizer
from vqvae_fast.cli.output import FILE_NAME, check_file, overwrite_option
from vqvae_fast.errors import UserError


@click.command()
@click.argument("source", metavar="IN", type=FILE_NAME)
@click.argument("out", metavar="OUT", type=FILE_NAME)
@click.option(
    "--prefix",
    metavar="NAME",
    help="How its weights' names begin, if IN holds several quantizers.",
)
@overwrite_option
def convert(source: Path, out: Path, prefix: str | None, overwrite: bool) -> None:
    """Write the quantizer in IN, a checkpoint of this or another library, to OUT.

    In Python, vqvae_fast.load_quantizer(OUT) is the module.
    """
    check_file(out, overwrite, [source])
    try:
        stored = read_quantizer(source, prefix)
        module = stored.build()
    except (ValueError, TypeError, ModuleNotFoundError) as error:
        raise UserError(str(error)) from error
    try:
        with atomic_file(out) as temporary:
            stored._replace(state=module.state_dict()).save(temporary)
    except RuntimeError as error:  # torch raises it if the disk is full
        raise UserError(f"{out} cannot be written; is the disk full?") from error
    click.echo(str(stored))
    click.echo(f"saved  {out}")
