"""Tries a wheel on another Python than this one, with the oldest torch that the wheel serves.

    python -m tools.elsewhere [WHEEL]

The source archive must lie beside the wheel. The Python is the oldest on the PATH from 3.10 on that
has another version than this one. Its torch brings CUDA with it on x86-64, so some gigabytes are
fetched. Without a WHEEL this only says which Python it would take, or why none can serve here.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.environments import other_pythons
from tools.release import OLDEST_TORCH, try_wheel, version

# What torch and what it brings take unpacked and as wheels, with some room.
NEEDED_GB = 12


def why_not(python: str) -> str | None:
    """Why this Python cannot get the oldest torch here, or None."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free / 1e9
    if free < NEEDED_GB:
        return f"{OLDEST_TORCH} takes {NEEDED_GB} GB in {folder}, which has {free:.0f} left"
    command = [python, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    done = subprocess.run([*command, OLDEST_TORCH], capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["pip said nothing"]
        return f"{OLDEST_TORCH} cannot be fetched for {python}: {said[-1]}"
    return None


def main(arguments: list[str] | None = None) -> None:
    """Try the wheel and print how it went.

    Raises:
        SystemExit: there is no other Python, or something failed.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", nargs="?", type=Path)
    wheel = parser.parse_args(arguments).wheel
    others = other_pythons()
    if not others:
        raise SystemExit(
            f"The PATH has no Python from 3.10 on but {sys.version.split()[0]}: "
            "the wheel cannot be tried on another"
        )
    if wheel is None:
        if reason := why_not(others[0]):
            raise SystemExit(f"The wheel is not tried on another Python: {reason}")
        print(f"The wheel is tried on {others[0]}, too.")
        return
    wheel = wheel.resolve()  # the environment has a folder of its own
    sdist = wheel.with_name(f"vqvae_fast-{version()}.tar.gz")
    print(try_wheel(wheel, sdist, OLDEST_TORCH, others[0]))


if __name__ == "__main__":
    main()
