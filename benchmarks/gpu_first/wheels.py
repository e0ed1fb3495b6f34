"""Fetches files for a machine without network: ``make gpu-first-wheels``.

The files are wheels for that machine's Python (not for the one that fetches), and the latents and
codebooks of trained models. The models are trained here, because that machine lacks the
photographs.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.gpu_first.step import WHEELS

_LIST = Path(__file__).with_name("wheels.txt")
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
# The folder gets the latents of these codebooks [K, D], with few rows to keep it small.
_TRAINED = ((8192, 64), (512, 64))


def download(folder: Path, python: str) -> int:
    """Download the wheels; return pip's exit status."""
    abi = f"cp{python.replace('.', '')}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp"]
    command += [argument for name in (abi, "abi3", "none") for argument in ("--abi", name)]
    command += [argument for name in _PLATFORMS for argument in ("--platform", name)]
    command += ["--requirement", str(_LIST), "--dest", str(folder)]
    return subprocess.run(command).returncode


def save_trained(folder: Path) -> None:
    """Write one .npz for each model: z [N, D] and codebook [K, D]."""
    from vqvae_fast.bench import trained

    if reason := trained.unavailable():
        print(f"gpu-first-wheels: no vectors of a trained model: {reason}", file=sys.stderr)
        return
    for codes, dim in _TRAINED:
        z, codebook, _ = trained.trained(codes, dim)
        np.savez(folder / f"trained-K{codes}-D{dim}.npz", z=z.numpy(), codebook=codebook.numpy())


def main(given: list[str] | None = None) -> int:
    """Fetch all files; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_first.wheels", description=__doc__
    )
    parser.add_argument("--to", type=Path, default=WHEELS, help="the folder that travels")
    parser.add_argument("--python", default="3.12", help="the other machine's")
    parser.add_argument("--no-trained", action="store_true", help="wheels alone")
    options = parser.parse_args(given)
    options.to.mkdir(parents=True, exist_ok=True)
    status = download(options.to, options.python)
    if not options.no_trained:
        save_trained(options.to)
    size = sum(path.stat().st_size for path in options.to.iterdir())
    print(f"gpu-first-wheels: {options.to}, {size / 2**20:.0f} MiB")
    return status


if __name__ == "__main__":
    sys.exit(main())
