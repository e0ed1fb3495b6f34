"""The search against its peers and the machine's peak: ``python -m benchmarks.search``."""

from collections.abc import Iterable
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import command_line, environment, memory, results
from benchmarks.data import SEARCH_SHAPES, TINY_SHAPES, Shape, Vectors, gaussian
from benchmarks.exactness import smallest_distances, violating_share
from benchmarks.interleave import interleaved, ratio
from benchmarks.peak import PeakMeter, try_meter
from benchmarks.peers import OURS, SEARCH_PEERS
from benchmarks.threads import all_threads

# A quiet machine's peak samples stay above this share of their median.
_STEADY = 0.8
DTYPES = ("float32", "float64", "bfloat16", "float16")


class InexactError(AssertionError):
    """Our own answer breaks the exactness contract: nothing is timed."""


def compare(
    vectors: Vectors, meter: PeakMeter | None, rounds: int, min_seconds: float
) -> dict[str, Any]:
    """Check, then time all peers on the same tensors.

    Returns:
        The JSON record of one shape: contenders with timings, GFLOP/s, share of violating rows
        and ratio to ours; the peak around it.

    Raises:
        InexactError: our answer is not exact. A peer's inexactness is recorded instead.
    """
    z, codebook, source = vectors
    shape, dtype = vectors.shape, str(z.dtype).removeprefix("torch.")
    smallest = smallest_distances(z, codebook)
    calls, violating, reasons = {}, {}, {}
    for peer in SEARCH_PEERS:
        if reason := peer.why_not(dtype):
            reasons[peer.name] = reason
            continue
        calls[peer.name] = peer.prepare(z, codebook)
        violating[peer.name] = violating_share(z, codebook, calls[peer.name](), smallest)
    if violating[OURS.name]:
        raise InexactError(
            f"{violating[OURS.name]:.2%} of our rows at {shape.name} ({source}, {dtype}) "
            "chose a code that is not the nearest"
        )
    first_sample = len(meter.flops) if meter else 0
    timings = interleaved(
        calls, rounds, min_seconds=min_seconds, between=meter.sample if meter else lambda: None
    )
    peak = meter.median(first_sample) if meter else None
    contenders = {}
    for name, timing in timings.items():
        flops = shape.flops / timing.median
        contenders[name] = {
            "seconds": timing._asdict(),
            "gflops": flops / 1e9,
            "share_of_peak": flops / peak if peak else None,
            "violating_rows": violating[name],
            "times_slower_than_ours": ratio(timings[OURS.name], timing)._asdict(),
        }
    return {
        "shape": shape._asdict(),
        "data": source,
        "dtype": dtype,
        "peak_gflops": peak / 1e9 if peak else None,
        "contenders": contenders,
        "skipped": reasons,
    }


def memory_of(shape: Shape, threads: int) -> dict[str, int | None]:
    """Peak memory of our search beside inputs and outputs, and what it may be (float32)."""
    peak = memory.measure("search", OURS.name, shape, threads)
    return {
        "beside_outputs": peak.beside_outputs if peak else None,
        "bound": memory.search_bound(shape),
    }


def run(
    datasets: Iterable[Vectors], threads: int, rounds: int, min_seconds: float, with_memory: bool
) -> dict[str, Any]:
    """The whole record: head, peak, one entry per shape and kind of data."""
    meter, why_no_peak = try_meter(threads)
    entries: list[dict[str, Any]] = []
    with all_threads(threads):
        for vectors in tqdm(list(datasets), desc="search", unit="shape", disable=None):
            entry = compare(vectors, meter, rounds, min_seconds)
            if with_memory and entry["data"] == "Gaussian" and entry["dtype"] == "float32":
                entry["memory"] = memory_of(vectors.shape, threads)
            entries.append(entry)
    timed = {peer.name: peer.timed for peer in SEARCH_PEERS}
    skipped = {name: why for entry in entries for name, why in entry["skipped"].items()}
    return environment.describe("benchmarks.search", threads) | {
        "rounds": rounds,
        "peak": meter.summary() if meter else {"unavailable": why_no_peak},
        "timed": timed,
        "skipped": skipped,
        "results": entries,
    }


def markdown(record: dict[str, Any]) -> str:
    """The record as tables."""
    parts = [results.heading(record), _peak_line(record["peak"])]
    parts.append(
        f"Times are milliseconds a call: median (quartiles) of {record['rounds']} interleaved "
        "rounds. GFLOP/s counts 2NKD. Violating rows: the chosen code is farther than the "
        "nearest by more than the contract's tolerance, in float64. The last column is the "
        "contender's time over ours, round by round.\n"
    )
    for entry in record["results"]:
        n, k, d = entry["shape"].values()
        parts.append(f"\n## N={n}, K={k}, D={d}: {entry['data']}, {entry['dtype']}\n\n")
        parts.append(
            results.table(
                ("contender", "ms", "GFLOP/s", "of peak", "violating rows", "ours is faster"),
                [
                    (
                        name,
                        results.milliseconds(line["seconds"]),
                        f"{line['gflops']:.0f}",
                        results.share(line["share_of_peak"]),
                        results.share(line["violating_rows"]),
                        results.times(line["times_slower_than_ours"]),
                    )
                    for name, line in entry["contenders"].items()
                ],
            )
        )
        if "memory" in entry:
            used = results.mebibytes(entry["memory"]["beside_outputs"])
            bound = results.mebibytes(entry["memory"]["bound"])
            parts.append(f"\nOur memory beside inputs and outputs: {used} MiB, at most {bound}.\n")
    parts.append("\nTimed:\n" + "".join(f"- {n}: {t}\n" for n, t in record["timed"].items()))
    parts.append(results.skipped(record))
    return "".join(parts)


def _peak_line(peak: dict[str, Any]) -> str:
    if "unavailable" in peak:
        return f"The peak was not measured: {peak['unavailable']}.\n\n"
    low, middle, high = peak["gflops_min"], peak["gflops"], peak["gflops_max"]
    text = (
        f"Measured float32 multiply-add peak ({peak['isa']}, {peak['threads']} threads): "
        f"{middle} GFLOP/s, median of {peak['samples']} samples from {low} to {high}; "
        f"{peak['flop_per_clock_and_thread']} operations a clock and thread at "
        f"{peak['clock_ghz']} GHz.\n\n"
    )
    if low < _STEADY * middle:
        text += "The machine was busy with other work meanwhile: the figures are rough.\n\n"
    return text


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Run, print the tables, write JSON and Markdown (a quick run only with --json)."""
    parser = command_line.parser("benchmarks.search", __doc__, rounds=9)
    command_line.add_cpu_options(parser)
    command_line.add_data_options(parser)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    options = parser.parse_args(given)
    dtype = getattr(torch, options.dtype)
    shapes = options.shapes or (TINY_SHAPES if options.quick else SEARCH_SHAPES)
    datasets = [gaussian(shape, dtype) for shape in shapes] + command_line.trained(options, dtype)
    rounds, min_seconds = (1, 0.0) if options.quick else (options.rounds, 0.1)
    record = run(datasets, options.threads, rounds, min_seconds, not options.no_memory)
    command_line.publish(record, markdown(record), options, "search")
    return record


if __name__ == "__main__":
    main()
