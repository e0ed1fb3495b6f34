"""The files to which results are written."""

import json
from pathlib import Path
from typing import Any

from vqvae_fast.bench.environment import machine_slug

FOLDER = Path(__file__).with_name("results")


def default_path(benchmark: str, machine: str | None = None) -> Path:
    """Return benchmarks/results/<machine>/<benchmark>.json."""
    return FOLDER / (machine or machine_slug()) / f"{benchmark}.json"


def write(path: Path, record: dict[str, Any], markdown: str) -> None:
    """Write the record as JSON and its table beside it as Markdown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown, encoding="utf-8")
