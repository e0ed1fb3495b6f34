"""Options and checks that the commands share which read or write files."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from vqvae_fast.errors import UserError


class _FileName(click.Path):
    """A path that is not empty: an empty one would mean the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if not str(value):
            self.fail("the name of a file or folder must not be empty", param, ctx)
        return Path(os.fsdecode(super().convert(value, param, ctx)))


FILE_NAME = _FileName()

overwrite_option = click.option("--overwrite", is_flag=True, help="Replace files that exist.")
device_option = click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
run_option = click.option(
    "--run", required=True, metavar="RUN", help="Run folder of vqvae-fast train."
)


def check_file(path: Path, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Raise UserError if a file cannot or must not be written, before work is done for it.

    Args:
        path: the file.
        overwrite: whether it may replace one that exists.
        inputs: files that are read, and never replaced.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, the name of a file was expected")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to write {path.name} to")
    if not os.path.lexists(path):
        return
    if not path.exists():
        raise UserError(
            f"{path} is a link to a file that does not exist, the name of a file was expected"
        )
    if not path.is_file():
        # Replacing /dev/null, as root can, would harm the whole machine.
        raise UserError(f"{path} is a device or a pipe, the name of a file was expected")
    if any(other.exists() and path.samefile(other) for other in inputs):
        raise UserError(f"{path} is read and cannot be written, too; name another file")
    if not overwrite:
        raise UserError(f"{path} exists and is not replaced without --overwrite")
