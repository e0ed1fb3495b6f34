"""Locks a run folder, so that one process at a time writes to it."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vqvae_fast.errors import UserError

LOCK = ".lock"


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the lock of a run folder; readers need none, since files are replaced whole.

    The lock belongs to the open file, so the system releases it however the process ends, also by
    kill -9 or the loss of the node. The file itself stays in the folder.

    Raises:
        UserError: another process holds the lock, or the folder cannot be written or locked.
    """
    try:
        if (run / LOCK).is_symlink() or ((run / LOCK).exists() and not (run / LOCK).is_file()):
            raise UserError(f"{run / LOCK} must be a file of this run, not a link or a pipe")
        file = (run / LOCK).open("ab")
    except OSError as error:
        raise UserError(f"the run folder {run} cannot be written to: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is writing to the run folder {run}") from error
        except OSError as error:
            raise UserError(f"the run folder {run} cannot be locked: {error.strerror}") from error
        try:
            yield
        finally:
            # Processes that were forked meanwhile would keep the lock with their copy of the file.
            fcntl.flock(file, fcntl.LOCK_UN)
