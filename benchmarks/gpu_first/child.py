"""A part's process: runs its steps one after the other, and writes a line for each event.

A step that raises does not end the part. If an error has spoilt the CUDA context, as a bad memory
access does, the process ends with a special status, and the supervisor starts another one after
that step.
"""

import argparse
import functools
import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from benchmarks.gpu_first.step import Setting, Step

# A process whose CUDA context is spoilt ends with this status.
SPOILT = 75
_TRACEBACK_LINES = 12


def run_steps(
    steps: list[Step], write: Callable[[dict[str, Any]], None], first: int, seconds: float
) -> int:
    """Run steps from number ``first`` on, none after ``seconds``; return the exit status."""
    begin = time.monotonic()
    write({"event": "steps", "steps": [{"name": s.name, "seconds": s.seconds} for s in steps]})
    for number in range(first, len(steps)):
        if time.monotonic() - begin >= seconds:
            return 0
        write({"event": "begin", "step": number})
        started, error = time.monotonic(), None
        try:
            steps[number].run(functools.partial(_emit, write, number))
        except Exception:
            error = "".join(traceback.format_exc().splitlines(keepends=True)[-_TRACEBACK_LINES:])
            print(traceback.format_exc(), file=sys.stderr, flush=True)
        took = round(time.monotonic() - started, 2)
        write({"event": "end", "step": number, "seconds": took, "error": error})
        if error is not None and _is_spoilt():
            return SPOILT
    return 0


def _emit(write: Callable[[dict[str, Any]], None], number: int, /, **row: Any) -> None:
    write({"event": "row", "step": number, "row": row})


def _is_spoilt() -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


def _writer(file: TextIO) -> Callable[[dict[str, Any]], None]:
    def write(event: dict[str, Any]) -> None:
        file.write(json.dumps(event, default=str) + "\n")
        file.flush()

    return write


def main(given: list[str] | None = None) -> int:
    """Return the exit status: 0, SPOILT, or 1 if the part has no steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part")
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--setting", type=Setting.from_json, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args(given)
    with options.events.open("a", encoding="utf-8") as file:
        write = _writer(file)
        try:
            module = importlib.import_module(f"benchmarks.gpu_first.parts.{options.part}")
            steps = module.steps(options.setting)
        except Exception as error:
            write({"event": "unusable", "error": f"{type(error).__name__}: {error}"})
            raise
        return run_steps(steps, write, options.first, options.seconds)


if __name__ == "__main__":
    sys.exit(main())
