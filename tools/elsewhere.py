"""Tries a wheel on another Python than this one, with the oldest torch that the wheel serves.

    python -m tools.elsewhere [WHEEL]

The source archive must lie beside the wheel. The Python is the oldest on the PATH from 3.10 on that
has another version than this one. Its torch brings CUDA with it on x86-64, so some gigabytes are
fetched. Without a WHEEL this only says which Python it would take.
"""

import argparse
import sys
from pathlib import Path

from tools.environments import other_pythons
from tools.release import OLDEST_TORCH, try_wheel, version


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
        print(others[0])
        return
    wheel = wheel.resolve()  # the environment has a folder of its own
    sdist = wheel.with_name(f"vqvae_fast-{version()}.tar.gz")
    print(try_wheel(wheel, sdist, OLDEST_TORCH, others[0]))


if __name__ == "__main__":
    main()
