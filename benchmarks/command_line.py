"""Options, data and output that the benchmarks' command lines share."""

import argparse
import zipfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import results
from vqvae_fast.bench.data import PUBLISHED, Shape, Vectors, from_npz, from_run
from vqvae_fast.bench.threads import check_threads


def parser(
    module: str, description: str | None, rounds: int, *, shapes: bool = True
) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark of kernels has."""
    made = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    if shapes:
        made.add_argument(
            "--shapes",
            nargs="+",
            type=_shape,
            metavar="SHAPE",
            help=f"N,K,D or a published model's: {', '.join(PUBLISHED)}",
        )
    made.add_argument("--rounds", type=positive, default=rounds)
    made.add_argument("--json", type=Path, metavar="OUT", help="instead of benchmarks/results/")
    return made


def positive(text: str) -> int:
    """Parse a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, got {text}")
    return int(text)


def threads(text: str) -> int:
    """Parse a number of threads for which there are cores."""
    number = positive(text)
    try:
        check_threads(number)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return number


def _shape(text: str) -> Shape:
    """Parses a shape; argparse shows the message of this error alone."""
    try:
        return Shape.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_cpu_options(made: argparse.ArgumentParser) -> None:
    """Add options for threads, a quick run, and memory, which a separate process measures."""
    made.add_argument("--threads", type=threads, default=torch.get_num_threads())
    made.add_argument("--quick", action="store_true", help="tiny shapes, one short round")
    made.add_argument("--no-memory", action="store_true", help="leave the memory out")


def add_data_options(made: argparse.ArgumentParser) -> None:
    """Add options for vectors of trained models beside Gaussian ones."""
    made.add_argument(
        "--run", nargs="*", type=Path, default=[], help="run folders of vqvae-fast train"
    )
    made.add_argument(
        "--latents",
        nargs="*",
        type=Path,
        default=[],
        metavar="NPZ",
        help="latents z [N, D] and codebook [K, D] of trained models",
    )


def trained(options: argparse.Namespace, dtype: torch.dtype) -> list[Vectors]:
    """Return the vectors that the options of :func:`add_data_options` name, or end the program."""
    try:
        return [
            *(from_run(path, dtype=dtype) for path in options.run),
            *(from_npz(path, dtype) for path in options.latents),
        ]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise SystemExit(f"no latents to measure on: {error}") from error


def publish(record: dict[str, Any], text: str, options: argparse.Namespace, name: str) -> None:
    """Print the tables and write them, with the JSON beside (a quick run only with --json)."""
    print(text)
    out = options.json or (None if options.quick else results.default_path(name))
    if out:
        results.write(out, record, text)
