"""Files and folders that appear whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def hidden_folder(parent: Path) -> Iterator[Path]:
    """A new hidden folder in ``parent``, removed at the end unless it was renamed.

    Its name is short and depends on no other name, which may be as long as the file system
    allows. A process that is killed leaves the folder behind.
    """
    folder = parent / f".vqvae-fast-{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: the caller fills the path given, which then replaces it.

    A process that is killed leaves the old file; the new one is on the disk before it is named.
    The path given has the name of ``path``: writers choose formats and titles by it.
    """
    with hidden_folder(path.parent) as folder:
        temporary = folder / path.name
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
