"""Formats records as Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, padded so that it can be read as plain text too."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    padded = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    ]
    padded.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(padded) + "\n"


def heading(record: dict[str, Any], device: str | None = None) -> str:
    """Return the title, the machine (or ``device``, in words), versions and command."""
    device = device or (
        f"{record['cpu']}, {record['threads']} of {record['cores']} cores, kernels: {record['isa']}"
    )
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return (
        f"# {record['benchmark']}: {record['machine']}\n\n"
        f"{record['date']}, {device}, revision {record['revision'] or 'unknown'}.\n"
        f"{versions}.\n\n    {record['command']}\n\n"
    )


def milliseconds(timing: dict[str, Any]) -> str:
    """Return the median and the quartiles, as in "1.23 (1.20-1.30)"."""
    return "{} ({}-{})".format(*(_short(timing[key] * 1e3) for key in ("median", "q25", "q75")))


def times(ratio: dict[str, Any]) -> str:
    """Return how many times faster, with quartiles."""
    return "{}x ({}-{})".format(*(_short(ratio[key]) for key in ("median", "q25", "q75")))


def mebibytes(number: int | None) -> str:
    """Return bytes as MiB."""
    return "-" if number is None else f"{number / (1 << 20):.1f}"


def share(fraction: float | None) -> str:
    """Return a share in per cent; a tiny share is not shown as 0."""
    if fraction is None:
        return "-"
    if 0 < fraction < 0.0005:
        return "<0.1 %"
    return f"{fraction * 100:.1f} %" if fraction < 0.1 else f"{fraction * 100:.0f} %"


def skipped(record: dict[str, Any]) -> str:
    """Return the peers that did not run, and why."""
    lines = [f"- {name}: {reason}\n" for name, reason in record["skipped"].items()]
    return "\nNot run:\n" + "".join(lines) if lines else ""


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"
