"""The command line: ``vqvae-fast train``, ``encode``, ``convert``, ``info``, ...

Every mistake of a user ends with one sentence on stderr and a non-zero status. If torchrun has
started several processes, the first one prints it.
"""

import os
import signal
import sys
import time

# 128 + SIGINT, as shells report a program ended by Ctrl-C.
INTERRUPTED = 130
# Seconds that the first of several processes has to meet an error that another has met.
_PATIENCE = 20.0


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; ``arguments`` are sys.argv[1:] unless given."""
    try:
        import click
        import torch

        from vqvae_fast.cli.app import app
        from vqvae_fast.errors import UserError
        from vqvae_fast.extras import MissingExtraError
        from vqvae_fast.settings import UnknownSettingError, UnmetRequestError
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("vqvae_fast"):
            raise
        _fail(f"{error.name} is not installed: pip install {error.name}", 1)
    try:
        status = app.main(arguments, prog_name="vqvae-fast", standalone_mode=False)
    except click.ClickException as error:
        _fail_together(error.format_message(), error.exit_code)
    except (UserError, MissingExtraError, UnknownSettingError, UnmetRequestError) as error:
        _fail_together(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        _fail_together("interrupted", INTERRUPTED)
    except (MemoryError, torch.OutOfMemoryError):
        _fail("out of memory; choose a smaller --batch-size or model", 1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _fail(f"{error.strerror or error}{where}", 1)
    sys.exit(status if isinstance(status, int) else 0)


def _fail_together(message: str, status: int) -> None:
    """:func:`_fail` for errors that all processes meet: the first one prints the message.

    A launcher ends all processes as soon as one has ended. The others therefore wait: otherwise the
    launcher might end the first before it has printed. If the first process did not meet the error,
    this one prints it after the wait.
    """
    if _rank() > 0:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: os._exit(status))
        time.sleep(_PATIENCE)
    _fail(message, status)


def _fail(message: str, status: int) -> None:
    """Print one line on stderr and exit."""
    process = f"process {_rank()}: " if _rank() > 0 else ""
    print(f"vqvae-fast: {process}{' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def _rank() -> int:
    """The number of this process among those that torchrun has started; 0 if it is alone."""
    return int(os.environ.get("RANK", 0)) if int(os.environ.get("WORLD_SIZE", 1)) > 1 else 0
