"""Other programs: found, run with a limit, and their last words kept."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

# Where CUDA's tools lie when PATH does not name them.
_CUDA = ("CUDA_HOME", "CUDA_PATH")
_LAST_CHARACTERS = 3000


def find(name: str) -> str | None:
    """A tool's path: from PATH, or from CUDA's own folder."""
    folders = [os.environ[variable] for variable in _CUDA if variable in os.environ]
    places = [str(Path(folder) / "bin") for folder in (*folders, "/usr/local/cuda")]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))


def run(command: Sequence[str], **variables: str) -> tuple[int, str]:
    """The status and what it said at last; the step's own limit ends what hangs."""
    done = subprocess.run(
        command,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return done.returncode, done.stdout.strip()[-_LAST_CHARACTERS:]
