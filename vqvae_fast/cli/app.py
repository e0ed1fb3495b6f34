"""The group of all commands."""

from importlib import import_module

import click

import vqvae_fast
from vqvae_fast.extras import needs_extra

# The help of each command, by its name, which is also that of its module and its function.
_COMMANDS = {
    "train": "Train a VQ-VAE on images.",
    "reconstruct": "Encode and decode an image.",
    "encode": "Turn images into codes.",
    "decode": "Turn codes into images.",
    "convert": "Take the quantizer out of a checkpoint.",
    "info": "Say which kernels this machine gets, and why.",
    "bench": "Compare our kernels with other libraries on this machine, in a minute or two.",
}


class _Commands(click.Group):
    """Imports a command when it runs: commands need different packages, and some need none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return super().get_command(ctx, cmd_name)
        with needs_extra("train", cmd_name):
            module = import_module(f"vqvae_fast.cli.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # click would import every command for the first sentence of its help.
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(
    cls=_Commands,
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
