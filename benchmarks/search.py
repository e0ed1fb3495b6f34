"""Times the search, its peers and the machine's peak: ``python -m benchmarks.search``.

The data are Gaussian and, unless shapes are given, latents and codebooks of models. The first run
trains these from the photographs, which takes minutes, and keeps them.
"""

from typing import Any

import torch
from tqdm import tqdm

from benchmarks import command_line
from vqvae_fast.bench import environment, search, trained
from vqvae_fast.bench.data import PUBLISHED_SHAPES, SEARCH_SHAPES, TINY_SHAPES, gaussian

SHAPES = tuple(dict.fromkeys((*SEARCH_SHAPES, *PUBLISHED_SHAPES)))
DTYPES = ("float32", "float64", "bfloat16", "float16")


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Run, print the tables, write JSON and Markdown (a quick run only with --json)."""
    parser = command_line.parser("benchmarks.search", __doc__, rounds=3)
    command_line.add_cpu_options(parser)
    command_line.add_data_options(parser)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument(
        "--no-trained", action="store_true", help="train no models for latents and codebooks"
    )
    parser.add_argument(
        "--passes", type=command_line.positive, default=3, help="through all shapes, each --rounds"
    )
    options = parser.parse_args(given)
    dtype = getattr(torch, options.dtype)
    shapes = options.shapes or (TINY_SHAPES if options.quick else SHAPES)
    datasets = [gaussian(shape, dtype) for shape in shapes] + command_line.trained(options, dtype)
    if not (options.no_trained or options.quick or options.shapes):
        if reason := trained.unavailable():
            parser.error(f"models cannot be trained here, --no-trained leaves them out: {reason}")
        datasets += [trained.trained(k, d, rows, dtype) for rows, k, d in trained.TRAINED_SHAPES]
    rounds, passes, min_seconds = (
        (1, 1, 0.0) if options.quick else (options.rounds, options.passes, 0.1)
    )
    head = environment.describe("benchmarks.search", options.threads)
    total = passes * len(datasets)
    with tqdm(total=total, desc="search", unit="shape", disable=None) as bar:
        record = head | search.run(
            datasets,
            options.threads,
            rounds,
            min_seconds,
            not options.no_memory,
            passes,
            lambda entry: bar.update(),
        )
    command_line.publish(record, search.markdown(record), options, "search")
    return record


if __name__ == "__main__":
    main()
