"""Times the search beside its peers and the machine's peak."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from vqvae_fast.bench import memory, tables
from vqvae_fast.bench.contest import (
    Contender,
    FailedContenderError,
    check_again,
    check_ours,
    is_ours,
    leaver,
)
from vqvae_fast.bench.data import Shape, Vectors
from vqvae_fast.bench.exactness import smallest_distances, violating_share
from vqvae_fast.bench.interleave import interleaved, ratio, summarise
from vqvae_fast.bench.peak import PeakMeter, measure_limits, try_meter
from vqvae_fast.bench.peers import OURS, SEARCH_PEERS, SearchPeer
from vqvae_fast.bench.threads import all_threads

# On a quiet machine all samples of the peak exceed this share of their median.
_STEADY = 0.8
# A contender that needs more than 2 s and ten times our time is stopped after its first call.
_LONGEST_CALL, _SLOWEST_CALL = 2, 10


class Measured(NamedTuple):
    """The result of one pass at one shape: seconds by contender and round, and the peaks."""

    seconds: dict[str, list[float]]
    peak_flops: list[float]
    violating: dict[str, float]
    left_out: dict[str, str]


def measure(
    vectors: Vectors,
    meter: PeakMeter | None,
    rounds: int,
    min_seconds: float,
    peers: Sequence[SearchPeer] | None = None,
) -> Measured:
    """Check and time all peers, or the named ones, on the same tensors.

    The first peer is the one with which all compare.

    Raises:
        InexactError: an answer of ours is not exact. A peer's inexactness is only recorded.
        FailedContenderError: ours gives no answer. A peer that fails is left out, with the reason.
    """
    z, codebook, source = vectors
    shape, dtype = vectors.shape, str(z.dtype).removeprefix("torch.")
    smallest = smallest_distances(z, codebook)

    def judge(indices: Tensor) -> float:
        return violating_share(z, codebook, indices, smallest)

    ready: dict[str, Contender] = {}
    reasons, own = {}, math.inf
    peers = SEARCH_PEERS if peers is None else peers
    for peer in peers:
        reason = peer.why_not(dtype, shape) or memory.too_large(peer.matrices, shape, z.itemsize)
        if reason:
            reasons[peer.name] = reason
            continue
        try:
            contender = Contender(peer.prepare, (z, codebook), judge)
            seconds = contender.check()
        except FailedContenderError as error:
            if is_ours(peer.name):
                raise
            reasons[peer.name] = str(error)
            continue
        own = seconds if peer is peers[0] else own
        if seconds > max(_LONGEST_CALL, _SLOWEST_CALL * own):
            reasons[peer.name] = f"took {seconds:.1f} s, {seconds / own:.0f} times as long as ours"
            continue
        ready[peer.name] = contender
    where = f"at {shape.name} ({source}, {dtype})"
    check_ours(ready, where)
    first_sample = len(meter.flops) if meter else 0
    timings = interleaved(
        {name: contender.call for name, contender in ready.items()},
        rounds,
        min_seconds=min_seconds,
        between=meter.sample if meter else lambda: None,
        failed=leaver(reasons),
    )
    check_again(ready, where, reasons)
    return Measured(
        {name: timing.rounds for name, timing in timings.items()},
        meter.flops[first_sample:] if meter else [],
        {name: contender.wrong for name, contender in ready.items()},
        reasons,
    )


def entry(vectors: Vectors, passes: Sequence[Measured]) -> dict[str, Any]:
    """Return the JSON record of one shape, with the rounds of all passes together.

    It has each contender's timings, GFLOP/s, share of violating rows and ratio to ours, and the
    peak measured meanwhile. A contender that is missing in one pass is left out.
    """
    shape = vectors.shape
    ours = next(iter(passes[0].seconds))
    reasons = {name: why for one in passes for name, why in one.left_out.items()}
    timings = {
        name: summarise([seconds for one in passes for seconds in one.seconds[name]])
        for name in passes[0].seconds
        if name not in reasons
    }
    samples = [flops for one in passes for flops in one.peak_flops]
    peak = statistics.median(samples) if samples else None
    contenders = {}
    for name, timing in timings.items():
        flops = shape.flops / timing.median
        contenders[name] = {
            "seconds": timing._asdict(),
            "gflops": flops / 1e9,
            "share_of_peak": flops / peak if peak else None,
            "violating_rows": max(one.violating[name] for one in passes),
            "times_slower_than_ours": ratio(timings[ours], timing)._asdict(),
        }
    return {
        "shape": shape._asdict(),
        "data": vectors.source,
        "dtype": str(vectors.z.dtype).removeprefix("torch."),
        "peak_gflops": peak / 1e9 if peak else None,
        "contenders": contenders,
        "skipped": reasons,
    }


def memory_of(shape: Shape, threads: int) -> dict[str, int | None]:
    """Return the peak memory of our search beside inputs and outputs, and its bound (float32)."""
    peak = memory.measure(memory.SEARCH, OURS.name, shape, threads)
    return {
        "beside_outputs": peak.beside_outputs if peak else None,
        "bound": memory.search_bound(shape),
    }


def run(
    datasets: Iterable[Vectors],
    threads: int,
    rounds: int,
    min_seconds: float,
    with_memory: bool,
    passes: int = 1,
    found: Callable[[dict[str, Any]], object] = lambda entry: None,
    peers: Sequence[SearchPeer] | None = None,
) -> dict[str, Any]:
    """Return the record without its head: the peak, and an entry for each shape and kind of data.

    The rounds of one pass lie within seconds of each other and meet one state of the machine, so
    their quartiles say nothing about another minute. Each of the ``passes`` goes through all
    shapes, with the contenders built anew. ``found`` gets the entry of a shape as soon as it is
    measured, in each pass. ``peers`` are all unless given.
    """
    meter, why_no_peak = try_meter(threads)
    datasets = list(datasets)
    measured: list[list[Measured]] = [[] for _ in datasets]
    with all_threads(threads):
        for _ in range(passes):
            for vectors, mine in zip(datasets, measured, strict=True):
                mine.append(measure(vectors, meter, rounds, min_seconds, peers))
                found(entry(vectors, mine))
        entries = [entry(*both) for both in zip(datasets, measured, strict=True)]
        for vectors, result in zip(datasets, entries, strict=True):
            if with_memory and result["data"] == "Gaussian" and result["dtype"] == "float32":
                result["memory"] = memory_of(vectors.shape, threads)
    timed = {peer.name: peer.timed for peer in (SEARCH_PEERS if peers is None else peers)}
    everywhere = [set(result["skipped"].items()) for result in entries]
    skipped = dict(sorted(set.intersection(*everywhere))) if everywhere else {}
    return {
        "rounds": rounds,
        "passes": passes,
        "peak": meter.summary() if meter else {"unavailable": why_no_peak},
        "limits": measure_limits(threads) if meter else {},
        "timed": timed,
        "skipped": skipped,
        "results": entries,
    }


def markdown(record: dict[str, Any]) -> str:
    """Return the record as Markdown tables."""
    parts = [tables.heading(record), _peak_line(record["peak"]), _limits_line(record["limits"])]
    parts.append(
        f"Times are milliseconds a call: median (quartiles) of {record['rounds']} interleaved "
        f"rounds in each of {record['passes']} passes through all shapes. GFLOP/s counts 2NKD. "
        "Violating rows: the chosen code is farther than the nearest by more than the contract's "
        "tolerance, in float64. The last column is the contender's time over ours, round by "
        "round. Another run's medians are to be expected between the lowest and the highest round, "
        "which the JSON has.\n"
    )
    for entry in record["results"]:
        shape = Shape(**entry["shape"])
        parts.append(f"\n## {shape.title}: {entry['data']}, {entry['dtype']}\n\n")
        parts.append(
            tables.table(
                ("contender", "ms", "GFLOP/s", "of peak", "violating rows", "ours is faster"),
                [
                    (
                        name,
                        tables.milliseconds(line["seconds"]),
                        f"{line['gflops']:.0f}",
                        tables.share(line["share_of_peak"]),
                        tables.share(line["violating_rows"]),
                        tables.times(line["times_slower_than_ours"]),
                    )
                    for name, line in entry["contenders"].items()
                ],
            )
        )
        for name, reason in entry["skipped"].items():
            if name not in record["skipped"]:
                parts.append(f"\nLeft out: {name} {reason}.\n")
        if "memory" in entry:
            used = tables.mebibytes(entry["memory"]["beside_outputs"])
            bound = tables.mebibytes(entry["memory"]["bound"])
            parts.append(f"\nOur memory beside inputs and outputs: {used} MiB, at most {bound}.\n")
    parts.append("\nTimed:\n" + "".join(f"- {n}: {t}\n" for n, t in record["timed"].items()))
    parts.append(tables.skipped(record))
    return "".join(parts)


_LIMITS = {
    "float32_gflops": ("float32", "GFLOP/s"),
    "bfloat16_gflops": ("bfloat16", "GFLOP/s"),
    "int16_gops": ("int16", "GOP/s"),
    "int8_gops": ("int8", "GOP/s"),
    "amx_bfloat16_gflops": ("AMX bfloat16", "GFLOP/s"),
    "amx_int8_gops": ("AMX int8", "GOP/s"),
    "read_gb_per_s": ("reading memory", "GB/s"),
    "copy_gb_per_s": ("copying memory", "GB/s"),
}


def _limits_line(limits: dict[str, Any]) -> str:
    """Returns the machine's limits as text, without those that cannot be measured."""
    told = []
    for key, (name, unit) in _LIMITS.items():
        if limits.get(key) is not None:
            low, high = limits["ranges"][key]
            by = f" by {limits['isas'][key]}" if unit.endswith("OP/s") else ""
            told.append(f"{name}{by} {limits[key]:.0f} {unit} ({low:.0f}-{high:.0f})")
    return f"Limits, of {limits['bursts']} bursts each: {', '.join(told)}.\n\n" if told else ""


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
