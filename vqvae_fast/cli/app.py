"""The commands together."""

import click

import vqvae_fast
from vqvae_fast.cli.bench import bench
from vqvae_fast.cli.convert import convert
from vqvae_fast.cli.decode import decode
from vqvae_fast.cli.encode import encode
from vqvae_fast.cli.info import info
from vqvae_fast.cli.reconstruct import reconstruct
from vqvae_fast.cli.train import train


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(
    vqvae_fast.__version__, prog_name="vqvae-fast", message="%(prog)s %(version)s"
)
@click.pass_context
def app(context: click.Context, /) -> None:
    """Train a VQ-VAE on images, and look at what it does to them."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


app.add_command(train)
app.add_command(reconstruct)
app.add_command(encode)
app.add_command(decode)
app.add_command(convert)
app.add_command(info)
app.add_command(bench)
