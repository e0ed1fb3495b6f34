"""Times the quantizer layer, forward and backward, and its peer: ``python -m benchmarks.layer``."""

from typing import Any

from tqdm import tqdm

from benchmarks import command_line
from vqvae_fast.bench import environment, layer
from vqvae_fast.bench.data import LAYER_SHAPES, TINY_SHAPES


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Run, print the tables, write JSON and Markdown (a quick run only with --json)."""
    parser = command_line.parser("benchmarks.layer", __doc__, rounds=9)
    command_line.add_cpu_options(parser)
    options = parser.parse_args(given)
    shapes = options.shapes or (TINY_SHAPES if options.quick else LAYER_SHAPES)
    rounds, min_seconds = (1, 0.0) if options.quick else (options.rounds, 0.1)
    head = environment.describe("benchmarks.layer", options.threads)
    with tqdm(total=len(shapes), desc="layer", unit="shape", disable=None) as bar:
        record = head | layer.run(
            shapes,
            options.threads,
            rounds,
            min_seconds,
            not options.no_memory,
            lambda entry: bar.update(),
        )
    command_line.publish(record, layer.markdown(record), options, "layer")
    return record


if __name__ == "__main__":
    main()
