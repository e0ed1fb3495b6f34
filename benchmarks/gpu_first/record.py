"""The record of a run: one JSON file and its report, both complete after every write."""

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.gpu_first.report import markdown
from benchmarks.gpu_first.step import ROOT


class Record:
    """The results of a run so far.

    Attributes:
        data: all results.
        path: the JSON file; the report lies beside it, as .md.
    """

    def __init__(self, path: Path, head: dict[str, Any]):
        self.path = path
        self.data: dict[str, Any] = head | {"parts": {}}
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self) -> None:
        """Write both files; a reader sees the old or the new one, never a part."""
        _replace(self.path, json.dumps(self.data, indent=1) + "\n")
        _replace(self.path.with_suffix(".md"), markdown(self.data))


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(path.suffix + ".new")
    # Tracebacks and logs name files by their path in this tree, without the machine's path to it.
    temporary.write_text(text.replace(f"{ROOT}{os.sep}", ""), encoding="utf-8")
    os.replace(temporary, path)
