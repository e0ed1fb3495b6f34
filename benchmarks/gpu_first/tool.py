"""Finds other programs, runs them with a limit, and keeps the end of their output."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

# These variables name the folder of CUDA's tools, if PATH does not.
_CUDA = ("CUDA_HOME", "CUDA_PATH")
_LAST_CHARACTERS = 3000


def find(name: str) -> str | None:
    """Return a tool's path, from PATH or from CUDA's own folder."""
    folders = [os.environ[variable] for variable in _CUDA if variable in os.environ]
    places = [str(Path(folder) / "bin") for folder in (*folders, "/usr/local/cuda")]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))


def run(command: Sequence[str], **variables: str) -> tuple[int, str]:
    """Return the status and the end of the output; the step's limit ends a program that hangs."""
    done = subprocess.run(
        command,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return done.returncode, done.stdout.strip()[-_LAST_CHARACTERS:]
