"""Writes the record as a page: first the failures, then the parts with a table for each step."""

from collections.abc import Iterator
from typing import Any

_STATES = ("done", "failed", "crashed", "cut", "running", "not begun")
# Longer values (logs, listings) are placed below their table, not in it.
_LONGEST_CELL = 90


def markdown(data: dict[str, Any]) -> str:
    """Return the whole report."""
    return "".join(
        [
            _title(data),
            "\n## What went wrong\n\n",
            *(_problems(data) or ["Nothing so far.\n"]),
            "\n## Parts\n\n",
            _overview(data["parts"]),
            *(text for name, part in data["parts"].items() for text in _part(name, part)),
        ]
    )


def _title(data: dict[str, Any]) -> str:
    title = f"# First contact: {data['device']}\n\n"
    if data["rehearsal"]:
        title = (
            "# REHEARSAL of a first contact\n\n"
            "**Nothing here was measured on a GPU.** Tiny shapes ran on the CPU, in Triton's "
            "interpreter, to try the program. Its times say nothing about any device.\n\n"
        )
    return (
        f"{title}{data['date']}, revision {data['revision'] or 'unknown'}, "
        f"{data['minutes']:g} minutes allowed, {data['seconds']:.0f} s taken"
        f"{'' if data['finished'] else ' so far'}.\n\n    {data['command']}\n"
    )


def _problems(data: dict[str, Any]) -> list[str]:
    """Returns a line for each kind of failure, with all steps that had it."""
    names: dict[tuple[str, str], list[str]] = {}
    lines = []
    for name, part in data["parts"].items():
        if "error" in part:
            lines.append(f"- **{name}** did not run: {_line(part['error'])}\n")
        for step in part["steps"]:
            if step["state"] in ("failed", "crashed", "cut"):
                why = f"{step['state']}: {_line(step.get('error', ''))}"
                names.setdefault((name, why), []).append(step["name"])
        left = sum(step["state"] == "not begun" for step in part["steps"])
        if left and part["state"] != "running":
            lines.append(f"- **{name}**: {left} steps were not begun, the time was over\n")
    lines += [f"- **{part}**, {'; '.join(steps)}: {why}\n" for (part, why), steps in names.items()]
    lines += [f"- **{name}** was not begun: {why}\n" for name, why in data["left_out"].items()]
    return lines


def _line(error: str) -> str:
    """Returns the last line of a traceback, which says what happened."""
    lines = error.strip().splitlines()
    return lines[-1].strip()[:300] if lines else "no reason is known"


def _overview(parts: dict[str, Any]) -> str:
    rows = []
    for name, part in parts.items():
        states = [step["state"] for step in part["steps"]]
        counts = ", ".join(f"{states.count(s)} {s}" for s in _STATES if s in states)
        took = f"{part['seconds']:.0f} s" if "seconds" in part else ""
        rows.append([name, part["state"], took, counts, part["about"]])
    return _table(["part", "state", "took", "steps", "about"], rows)


def _part(name: str, part: dict[str, Any]) -> Iterator[str]:
    yield f"\n## {name}\n\n{part['about']}\n"
    if "error" in part:
        yield f"\nIt did not run:\n{_block(part['error'])}{_block(part.get('log', ''))}"
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    notes: dict[str, list[str]] = {}  # text -> the rows that have it
    for step in part["steps"]:
        for row in step["rows"]:
            cells = {key: _cell(value) for key, value in row.items()}
            short = {key: text for key, text in cells.items() if len(text) <= _LONGEST_CELL}
            tables.setdefault(tuple(short), []).append([step["name"], *short.values()])
            for key in cells.keys() - short.keys():
                notes.setdefault(cells[key], []).append(f"{step['name']}, {key}")
        if step.get("log"):
            notes.setdefault(step["log"], []).append(f"{step['name']}, log")
        if "error" in step:
            notes.setdefault(step["error"], []).append(f"{step['name']}, {step['state']}")
    for columns, rows in tables.items():
        if columns:
            yield "\n" + _table(["step", *columns], rows)
    for text, said_of in notes.items():
        yield f"\n{'; '.join(said_of)}:\n{_block(text)}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_cell(item)}" for key, item in value.items())
    return str(value)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cleaned = ([cell.replace("\n", " ").replace("|", "/") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cleaned)


def _block(text: str) -> str:
    return "".join(f"\n    {line}" for line in text.rstrip().splitlines()) + "\n"
