"""Writes the record as tables."""

from typing import Any

from vqvae_fast.bench import tables

_HEADS = {
    "search": ("TFLOP/s", "of bf16 product", "violating rows"),
    "layer": ("violating rows",),
    "residual": ("TFLOP/s", "of bf16 product", "violating rows"),
    "segment sum": ("GB/s", "of copy", "wrong sums"),
}


def markdown(record: dict[str, Any]) -> str:
    """Return the whole report: device, goals, a table for each entry, and what did not run."""
    parts = [tables.heading(record, _device(record)), _limits(record["limits"])]
    parts.append(
        "Times are milliseconds a call: median (quartiles) of "
        f"{record['rounds']} interleaved rounds, each the median of triton.testing.do_bench, which "
        "empties the L2 cache before every call. Python and launches count, as they do for a user; "
        "the column beside replays the same work from a CUDA graph with a warm cache, where that "
        "is short enough to matter. Peak memory is what a call allocates at most, results "
        "included. Violating rows: farther than the nearest code by more than the contract's "
        "tolerance, in float64, of a sample of rows. The last column is the contender's time over "
        "ours, round by round.\n"
    )
    parts.append("\n## Goals\n\n" + _goals(record["goals"]))
    parts += [_entry(entry, record["limits"]) for entry in record["results"]]
    parts.append("\n## Not measured\n\n" + (_not_measured(record) or "Nothing was left out.\n"))
    parts.append("\nTimed:\n" + "".join(f"- {n}: {t}\n" for n, t in record["timed"].items()))
    return "".join(parts)


def _device(record: dict[str, Any]) -> str:
    gpu = record["gpu"]
    extra = [f"driver {gpu['driver']}"] if "driver" in gpu else []
    extra += [f"power limit {gpu['power_limit']}"] if "power_limit" in gpu else []
    return ", ".join(
        [
            f"{gpu['name']} (sm_{gpu['compute_capability'].replace('.', '')}, "
            f"{gpu['multiprocessors']} multiprocessors, {gpu['memory_gib']} GiB)",
            f"CUDA {gpu['cuda']}",
            *extra,
            f"kernels: {record['chosen_backend']}",
        ]
    )


def _limits(limits: dict[str, float]) -> str:
    return (
        "Measured limits of the device: products of square matrices at "
        f"{limits['bfloat16_tflops']:.0f} TFLOP/s in bfloat16, {limits['float16_tflops']:.0f} in "
        f"float16, {limits['tf32_tflops']:.0f} in TF32 and {limits['float32_tflops']:.0f} in "
        f"float32; copies at {limits['copy_gb_per_s']:.0f} GB/s.\n\n"
    )


def _goals(goals: list[dict[str, Any]]) -> str:
    rows = []
    for goal in goals:
        at = "at most" if goal["unit"] == "ms" else "at least"
        measured = "-" if goal["measured"] is None else f"{goal['measured']:.3g} {goal['unit']}"
        met = {True: "yes", False: "NO", None: "?"}[goal["met"]]
        rows.append(
            (goal["goal"], f"{at} {goal['target']:g} {goal['unit']}", measured, met, goal["gap"])
        )
    return tables.table(("goal", "target", "measured", "met", "gap"), rows)


def _entry(entry: dict[str, Any], limits: dict[str, float]) -> str:
    n, k, d = entry["shape"].values()
    text = f"\n## {entry['kind']}: N={n}, K={k}, D={d}, {entry['data']}, {entry['dtype']}\n\n"
    if "error" in entry:
        return text + f"FAILED: {entry['error']}\n"
    rows = []
    for name, line in entry["contenders"].items():
        graph, slower = line["seconds_in_graph"], line["times_slower_than_ours"]
        rows.append(
            (
                name,
                tables.milliseconds(line["seconds"]),
                "-" if graph is None else f"{graph * 1e3:.3g}",
                tables.mebibytes(line["peak_bytes"]),
                *_figures(entry["kind"], line, limits),
                tables.times(slower) if slower else "-",
            )
        )
    blanks = ("-",) * (len(_HEADS[entry["kind"]]) + 3)
    rows += [(name, reason, *blanks) for name, reason in entry["failed"].items()]
    head = ("contender", "ms", "in a graph", "peak MiB", *_HEADS[entry["kind"]], "ours is faster")
    return text + tables.table(head, rows)


def _figures(kind: str, line: dict[str, Any], limits: dict[str, float]) -> tuple[str, ...]:
    wrong = tables.share(line["violating"])
    if kind in ("search", "residual"):
        of_product = tables.share(line["tflops"] / limits["bfloat16_tflops"])
        return f"{line['tflops']:.1f}", of_product, wrong
    if kind == "segment sum":
        of_copy = tables.share(line["gb_per_s"] / limits["copy_gb_per_s"])
        return f"{line['gb_per_s']:.0f}", of_copy, wrong
    return (wrong,)


def _not_measured(record: dict[str, Any]) -> str:
    """Lists the jobs for which there was no time, and the contenders that could not run."""
    lines = [f"- {job}\n" for job in record["left_out"]]
    reasons = {
        (name, reason): None
        for entry in record["results"]
        for name, reason in entry["skipped"].items()
        if reason != f"does not take {entry['dtype']}"
    }
    return "".join([*lines, *(f"- {name}: {reason}\n" for name, reason in reasons)])
