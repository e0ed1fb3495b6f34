"""The directive ``command``: what a command of ``vqvae-fast`` prints for ``--help``."""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from vqvae_fast.cli.app import app

WIDTH = 80


class Command(SphinxDirective):
    """Shows the help of the command that its argument names."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the help as a block of text."""
        (name,) = self.arguments
        settings = {"resilient_parsing": True, "terminal_width": WIDTH}
        context = app.make_context("vqvae-fast", [], **settings)
        command = app.get_command(context, name)
        if command is None:
            raise self.error(f"vqvae-fast has no command {name}")
        text = command.get_help(command.make_context(name, [], parent=context, **settings))
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("command", Command)
    return {"parallel_read_safe": True}
