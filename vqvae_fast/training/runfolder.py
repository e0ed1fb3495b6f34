"""A run folder: config.json, metrics.jsonl, result.json, checkpoint.pt and the pictures."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vqvae_fast.training.errors import UserError, user_path

CONFIG, METRICS, RESULT, CHECKPOINT = "config.json", "metrics.jsonl", "result.json", "checkpoint.pt"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: the caller fills the path given, which then replaces it.

    A process that is killed leaves the old file; the new one is on the disk before it is named.
    """
    # The suffix stays the last part of the name: picture formats are chosen by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write readable JSON atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def create_run(out: str | None, label: str) -> Path:
    """Make a new run folder: ``out``, or the first free of runs/label-1, runs/label-2, ...

    Raises:
        UserError: ``out`` holds something already, or cannot be written.
    """
    if out is not None:
        path = user_path(out)
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file, a run folder was expected")
        if path.is_dir() and any(path.iterdir()):
            raise UserError(
                f"{path} is not empty and is not overwritten; choose another --out, "
                "or continue a run with --resume"
            )
        _make(path, exist_ok=True)
        return path
    number = 1
    while True:
        path = Path("runs", f"{label}-{number}")
        try:
            # Making the folder is also what claims the name, should two runs start at once.
            _make(path, exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return path


def open_run(run: str | Path) -> Path:
    """The folder of an existing run; raises UserError where it is not one."""
    path = user_path(run)
    if not path.exists():
        raise UserError(f"run folder not found: {path}")
    if not path.is_dir() or not (path / CONFIG).is_file():
        raise UserError(f"{path} is not a run folder: it has no {CONFIG}")
    if not (path / CHECKPOINT).is_file():
        raise UserError(f"{path} has no {CHECKPOINT}: the run ended before its first one")
    return path


class Metrics:
    """metrics.jsonl: one JSON object a line, in the order of the steps.

    It holds nothing that differs between two runs of one config, so no times.
    """

    def __init__(self, run: Path, upto: int = 0) -> None:
        """Keep the rows up to step ``upto``: later ones will be written again, unchanged."""
        self._path = run / METRICS
        self.rows = [row for row in read_metrics(run) if row["step"] <= upto]
        with atomic_file(self._path) as temporary:
            temporary.write_text("".join(map(_line, self.rows)), encoding="utf-8")

    def add(self, row: dict[str, float]) -> None:
        """Append a row; each is on the disk before the next step."""
        self.rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(row))


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.jsonl; a line cut off by a crash is left out."""
    path = run / METRICS
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        rows.append(row)
    return rows


def _line(row: dict[str, float]) -> str:
    return json.dumps(row) + "\n"


def _make(path: Path, *, exist_ok: bool) -> None:
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        raise
    except OSError as error:
        raise UserError(f"the run folder {path} cannot be made: {error.strerror}") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"the run folder {path} cannot be written to")
