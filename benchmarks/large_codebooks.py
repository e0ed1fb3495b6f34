"""Times a training step of codebooks up to a million codes: ``benchmarks.large_codebooks``.

vector-quantize-pytorch is timed, too, as long as its N x K numbers fit into memory.
"""

from typing import Any

from tqdm import tqdm

from benchmarks import command_line
from benchmarks.sweep import with_memory
from vqvae_fast.bench import environment, layer, memory, tables
from vqvae_fast.bench.data import Shape, gaussian
from vqvae_fast.bench.peers import LAYER_PEERS
from vqvae_fast.bench.threads import all_threads

EMA, GRADIENT, PEER = "ours (EMA)", "ours (gradient)", "vector-quantize-pytorch (EMA)"
LAYERS = tuple(peer for peer in LAYER_PEERS if peer.name in (EMA, GRADIENT, PEER))
SHAPES = tuple(
    Shape(2048, k, d) for d in (8, 32, 128) for k in (1024, 8192, 65536, 262144, 1048576)
)
QUICK = (Shape(64, 32, 8), Shape(64, 64, 8))


def compare(shape: Shape, threads: int, rounds: int, min_seconds: float) -> dict[str, Any]:
    """Return the entry of a shape, as :mod:`vqvae_fast.bench.layer` does, with memory."""
    entry = layer.compare(gaussian(shape), rounds, min_seconds, LAYERS)
    with_memory(entry, memory.LAYER, shape, threads)
    return entry


def markdown(record: dict[str, Any]) -> str:
    """Return the record as a table, with a row for each size."""
    rows = []
    for entry in record["results"]:
        lines, skipped = entry["contenders"], entry["skipped"]
        cells = [str(entry["shape"]["d"]), str(entry["shape"]["k"])]
        for name in (EMA, GRADIENT, PEER):
            line = lines.get(name)
            cells.append(tables.milliseconds(line["seconds"]) if line else skipped[name])
            cells.append(tables.mebibytes(line["peak_memory"]) if line else "-")
        peer = lines.get(PEER)
        cells.append(tables.times(peer["times_slower_than_ours"]) if peer else "-")
        rows.append(cells)
    head = ["D", "K", "EMA, ms", "MiB", "gradient, ms", "MiB", "peer (EMA), ms", "MiB", "faster"]
    return (
        tables.heading(record)
        + "One training step of the layer alone, forward and backward with the codebook's averages "
        "or its gradient (an optimizer's own pass over the codebook is not in it), on 2048 float32 "
        f"Gaussian vectors. Median (quartiles) of {record['rounds']} interleaved rounds; memory is "
        "the peak of resident memory during a step over that before it, gradients included. The "
        "peer is vector-quantize-pytorch in its defaults; the last column compares with our "
        "EMA.\n\n" + tables.table(head, rows)
    )


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Run, print the table, write JSON and Markdown (a quick run only with --json)."""
    parser = command_line.parser("benchmarks.large_codebooks", __doc__, rounds=3)
    command_line.add_cpu_options(parser)
    options = parser.parse_args(given)
    shapes = options.shapes or (QUICK if options.quick else SHAPES)
    rounds, min_seconds = (1, 0.0) if options.quick else (options.rounds, 0.05)
    with all_threads(options.threads):
        entries = [
            compare(shape, options.threads, rounds, min_seconds)
            for shape in tqdm(shapes, desc="large codebooks", unit="size", disable=None)
        ]
    record = environment.describe("benchmarks.large_codebooks", options.threads)
    record |= {"rounds": rounds, "results": entries}
    command_line.publish(record, markdown(record), options, "large_codebooks")
    return record


if __name__ == "__main__":
    main()
