"""The rule for all files that the package reads: only regular files are opened."""

import os
import stat
from os import PathLike


def check_regular(path: str | PathLike[str]) -> None:
    """Raise ValueError if a path leads to a pipe, a socket or a device.

    Opening a pipe waits until another process writes to it, and a device may never end, so neither
    is ever opened. Symbolic links are followed. Folders pass: the callers raise their own errors
    for them.

    Raises:
        OSError: there is no such file, or the system does not let us look at it.
        ValueError: the path leads to a pipe, a socket or a device.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = (
            "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        )
        raise ValueError(f"{os.fspath(path)} is {kind}, only regular files are read")
