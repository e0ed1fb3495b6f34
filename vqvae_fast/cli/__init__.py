"""The command line: ``vqvae-fast train``, ``encode``, ``convert``, ``info``, ...

Whatever a user can get wrong ends with one sentence on stderr and a non-zero status.
"""

import sys

# 128 + SIGINT, as shells report a program ended by Ctrl-C.
INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; ``arguments`` are sys.argv[1:] unless given."""
    try:
        import click
        import torch

        from vqvae_fast.cli.app import app
        from vqvae_fast.settings import UnknownSettingError, UnmetRequestError
        from vqvae_fast.training.errors import UserError
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("vqvae_fast"):
            raise
        _fail(f"{error.name} is not installed: pip install vqvae_fast[train]", 1)
    try:
        status = app.main(arguments, prog_name="vqvae-fast", standalone_mode=False)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (UserError, UnknownSettingError, UnmetRequestError) as error:
        _fail(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", INTERRUPTED)
    except (MemoryError, torch.OutOfMemoryError):
        _fail("out of memory; choose a smaller --batch-size or model", 1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _fail(f"{error.strerror or error}{where}", 1)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> None:
    """One line on stderr, and out."""
    print(f"vqvae-fast: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
