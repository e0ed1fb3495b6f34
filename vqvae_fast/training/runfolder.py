"""A run folder: config.json, metrics.jsonl, result.json, checkpoint.pt, the pictures, the lock."""

import errno
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from vqvae_fast.atomic import atomic_file, hidden_folder
from vqvae_fast.errors import UserError, check_input, user_path
from vqvae_fast.training.config import TrainConfig, is_number
from vqvae_fast.training.runlock import LOCK, locked

CONFIG, METRICS, RESULT, CHECKPOINT = "config.json", "metrics.jsonl", "result.json", "checkpoint.pt"

# A line of metrics.jsonl. Figures of the codebook are null until the codebook has its codes.
Row = dict[str, Any]

# The errors of renaming a folder to a name that is taken.
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write readable JSON atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


@contextmanager
def new_run(out: str | None, label: str, fill: Callable[[Path], None]) -> Iterator[Path]:
    """Make a run folder and hold its lock: ``out``, or the first free of runs/label-1, -2, ...

    A folder that does not exist yet gets its name after ``fill`` has written into it: other
    programs never find half of one, and of two starts at once only one gets the name. A folder
    that exists and is empty is filled where it is, since it may be a mount or the current folder.

    Args:
        out: the folder; None chooses one.
        label: what a chosen name begins with.
        fill: writes the first files into the folder that it is given.

    Raises:
        UserError: ``out`` holds something already, or cannot be written.
    """
    with ExitStack() as lock:
        path = None if out is None else user_path(out)
        try:
            if path is None:
                names = (f"{label}-{number}" for number in count(1))
                path = _build(Path("runs"), names, fill, lock)
            elif path.is_dir():
                _fill(path, fill, lock)
            elif path.exists():
                raise UserError(f"{path} is a file, a run folder was expected")
            else:
                path = _build(path.parent, [path.name], fill, lock)
        except OSError as error:
            what = f"{path or 'runs'} cannot be made: {error.strerror or error}"
            raise UserError(f"the run folder {what}") from error
        yield path


def _build(
    parent: Path, names: Iterable[str], fill: Callable[[Path], None], lock: ExitStack
) -> Path:
    """Build a run folder under a hidden name, then give it the first name that is free."""
    parent.mkdir(parents=True, exist_ok=True)
    with hidden_folder(parent) as folder:
        lock.enter_context(locked(folder))
        fill(folder)
        for name in names:
            try:
                return folder.rename(parent / name)
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
    raise UserError(_not_empty(parent / name))


def _fill(path: Path, fill: Callable[[Path], None], lock: ExitStack) -> None:
    """Turn an existing, empty folder into a run folder."""
    _check_empty(path)  # before the lock, whose file must not be put into a foreign folder
    lock.enter_context(locked(path))
    _check_empty(path)  # again, since another process may have held the lock meanwhile
    fill(path)


def _check_empty(path: Path) -> None:
    if any(entry.name != LOCK for entry in path.iterdir()):
        raise UserError(_not_empty(path))


def _not_empty(path: Path) -> str:
    return (
        f"{path} is not empty and is not overwritten; choose another --out, "
        "or continue a run with --resume"
    )


def open_run(run: str | Path) -> Path:
    """The folder of an existing run; raises UserError if it is not one."""
    path = user_path(run)
    if not path.exists():
        raise UserError(f"run folder not found: {path}")
    if not path.is_dir() or not (path / CONFIG).is_file():
        raise UserError(f"{path} is not a run folder: it has no {CONFIG}")
    if not (path / CHECKPOINT).is_file():
        raise UserError(f"{path} has no {CHECKPOINT}: the run ended before its first one")
    return path


def read_config(run: Path) -> TrainConfig:
    """The settings in a run's config.json.

    Raises:
        UserError: it is not a JSON object of valid settings.
    """
    path = run / CONFIG
    check_input(path, "settings")
    try:
        values = read_json(path.read_bytes())
        if not isinstance(values, dict):
            raise UserError("settings must be a JSON object")
        return TrainConfig.from_dict(values)
    except ValueError as error:  # JSON errors and UserError are ValueErrors
        raise UserError(f"{path} cannot be used: {error}") from error


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

    def add(self, row: Row) -> None:
        """Append a row; each is on the disk before the next step."""
        self.rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(row))


def read_metrics(run: Path) -> list[Row]:
    """The rows of a run's metrics.jsonl; a last line that a crash has cut off is left out.

    Raises:
        UserError: another line is not a row of figures with its step.
    """
    path = run / METRICS
    if not path.exists():
        return []
    check_input(path, "metrics")
    *lines, rest = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(_row(line))
        except ValueError as error:
            raise UserError(
                f"line {number} of {path} must be a JSON object of figures with their step: "
                f"{error}; mend the file or move it away"
            ) from error
    with suppress(ValueError):
        rows.append(_row(rest))
    return rows


def read_json(text: bytes) -> Any:
    """Parse JSON in UTF-8; every failure is a ValueError."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _row(line: bytes) -> Row:
    row = read_json(line)
    if not isinstance(row, dict):
        raise ValueError(f"got a value of type {type(row).__name__}")
    for name, value in row.items():
        if value is not None and not is_number(value):
            raise ValueError(f"{name[:40]} is not a number")
    step = row.get("step")
    if not isinstance(step, int) or step < 1:
        raise ValueError("step is not a whole number of at least 1")
    return row


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"
