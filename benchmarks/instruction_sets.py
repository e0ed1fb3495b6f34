"""Times the search of every CPU instruction set, with and without its integer filter.

``python -m benchmarks.instruction_sets`` lets the sets take turns in one process, and compares them
with AVX2 in float32 (or, on another kind of machine, with the portable set).
"""

import statistics
import time
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import command_line
from vqvae_fast import _native, nearest_code
from vqvae_fast.bench import environment, tables
from vqvae_fast.bench.data import TINY_SHAPES, Shape, Vectors, gaussian
from vqvae_fast.bench.peak import PeakUnavailableError, kernels, native
from vqvae_fast.bench.threads import all_threads

SHAPES = tuple(Shape(4096, k, d) for k in (8192, 16384) for d in (64, 128, 256))
WITHOUT_FILTER = "-float32"
_BURST_SECONDS = 0.003
_BURSTS = 11


def stretched(shape: Shape) -> Vectors:
    """Return vectors that spread 27 times as far along the widest direction as along the ninth.

    The codes of a trained VQ-VAE (K = 8192, D = 64) have such a spectrum (docs/performance.md), so
    the filter keeps 16 bits for the widest directions.
    """
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(shape.d, shape.d, generator=generator)).Q
    spread = torch.arange(1, shape.d + 1) ** -1.5
    z, codebook = (
        torch.randn(count, shape.d, generator=generator) * spread @ turn
        for count in (shape.n, shape.k)
    )
    return Vectors(z, codebook, "stretched")


def contenders(extension: Any) -> tuple[str, ...]:
    """Return the instruction sets to time, the one that all are compared with first.

    A set that has no filter is timed once, and one that has the float kernels of another is not
    timed without its filter.
    """
    available = extension.available_cpu_isas()
    base = "avx2" if "avx2" in available else "portable"
    floats = [isa for isa in available if kernels.float_set(isa) == isa and isa != base]
    alone = [isa + WITHOUT_FILTER for isa in (base, *floats) if isa != "portable"]
    whole = [isa for isa in available if isa != "portable"]
    return tuple(dict.fromkeys([*(alone or [base]), *reversed(whole)]))


def compare(data: Vectors, sets: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """Return medians over rounds: seconds, times faster than the first, rows the filter settles.

    Raises:
        AssertionError: two sets differ in a bit of the indices or the distances.
    """
    extension = _native.extension
    assert extension is not None
    chosen = extension.cpu_isa()
    seconds: dict[str, list[float]] = {isa: [] for isa in sets}
    settled: dict[str, int] = {}
    wanted = None
    try:
        for turn in range(-1, rounds):  # the first turn warms up
            for isa in sets:
                extension.set_cpu_isa(isa)
                begin = time.perf_counter()
                found = nearest_code(data.z, data.codebook)
                taken = time.perf_counter() - begin
                wanted = wanted or found
                assert torch.equal(found.indices, wanted.indices), isa
                assert torch.equal(found.distances, wanted.distances), isa
                if turn >= 0:
                    seconds[isa].append(taken)
                    continue
                nothing = torch.empty(0, dtype=torch.uint8)
                settled[isa] = torch.ops.vqvae_fast.rows_settled_by_filter(
                    data.z, data.codebook, nothing
                )
    finally:
        extension.set_cpu_isa(chosen)
    first = seconds[sets[0]]
    return {
        isa: {
            "seconds": statistics.median(taken),
            "times_faster": statistics.median(a / b for a, b in zip(first, taken, strict=True)),
            "settled_rows": settled[isa],
        }
        for isa, taken in seconds.items()
    }


def peaks(sets: tuple[str, ...]) -> dict[str, float]:
    """Return the operations a second that each set can do on one thread, in 1e9.

    They are those of its integers, or without its filter of float32; what cannot be measured is
    left out.
    """
    found = {}
    for isa in sets:
        number_format = "float32" if isa.endswith(WITHOUT_FILTER) else "int8"
        try:
            kernel = kernels.float_set(isa) if number_format == "float32" else isa
            rate = native.Rate(kernels.named(number_format, kernel)[1], 1, _BURST_SECONDS)
        except PeakUnavailableError:
            continue
        found[isa] = round(statistics.median(rate.burst() for _ in range(_BURSTS)) / 1e9, 1)
    return found


def markdown(record: dict[str, Any]) -> str:
    """Return the record as a table, with a row for each shape, kind of data and thread count."""
    first, *others = record["sets"]
    rows = [
        [
            "limit, GOP/s, one thread",
            "",
            "",
            *(str(record["peaks"].get(s, "-")) for s in (first, *others)),
        ]
    ]
    for entry in record["results"]:
        shape, lines = entry["shape"], entry["sets"]
        rows.append(
            [
                f"{shape['n']}, {shape['k']}, {shape['d']}",
                entry["source"],
                str(entry["threads"]),
                f"{1e3 * lines[first]['seconds']:.1f} ms",
                *(f"{lines[isa]['times_faster']:.2f}x" for isa in others),
            ]
        )
    head = ["N, K, D", "data", "threads", *record["sets"]]
    return (
        tables.heading(record)
        + f"The time of {first}, and how many times faster the others are: medians of "
        f"{record['rounds']} rounds in which all sets take turns. All return the same bits. "
        f"NAME{WITHOUT_FILTER} is a set without its integer filter.\n\n" + tables.table(head, rows)
    )


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Run, print the table, write JSON and Markdown (a quick run only with --json)."""
    parser = command_line.parser("benchmarks.instruction_sets", __doc__, rounds=7)
    parser.add_argument(
        "--threads",
        type=command_line.threads,
        default=torch.get_num_threads(),
        help="timed beside one thread",
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes, one round")
    command_line.add_data_options(parser)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    options = parser.parse_args(given)
    if _native.extension is None:
        parser.error(f"there are no instruction sets to compare: {_native.reason}")
    dtype = getattr(torch, options.dtype)
    shapes = options.shapes or (TINY_SHAPES if options.quick else SHAPES)
    data = [make(shape) for shape in shapes for make in (gaussian, stretched)]
    data = [Vectors(v.z.to(dtype), v.codebook.to(dtype), v.source) for v in data]
    data += command_line.trained(options, dtype)
    rounds = 1 if options.quick else options.rounds
    sets = contenders(_native.extension)
    entries = []
    for threads in sorted({1, options.threads}):
        with all_threads(threads):
            for vectors in tqdm(data, desc=f"{threads} threads", unit="shape", disable=None):
                (n, d), k = vectors.z.shape, len(vectors.codebook)
                entry = {"shape": {"n": n, "k": k, "d": d}, "source": vectors.source}
                entries.append(entry | {"threads": threads, "sets": compare(vectors, sets, rounds)})
    record = environment.describe("benchmarks.instruction_sets", options.threads)
    record |= {
        "dtype": options.dtype,
        "rounds": rounds,
        "sets": sets,
        "peaks": peaks(sets),
        "results": entries,
    }
    command_line.publish(record, markdown(record), options, "instruction_sets")
    return record


if __name__ == "__main__":
    main()
