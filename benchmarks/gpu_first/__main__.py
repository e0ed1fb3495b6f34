"""The command: ``python -m benchmarks.gpu_first [--part NAME ...] [--minutes 30]``."""

import argparse
import datetime
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu_first.plan import NAMES, PARTS, Part, allotted
from benchmarks.gpu_first.record import Record
from benchmarks.gpu_first.step import ROOT, WHEELS, Setting
from benchmarks.gpu_first.supervise import Supervisor, environment

# No part begins with fewer seconds left, because its process would hardly import torch in time.
_LEAST_SECONDS = 5.0
_UNKNOWN = "unknown GPU"


def options_of(given: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_first", description=__doc__)
    parser.add_argument("--part", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--minutes", type=float, default=30.0, help="for all parts together")
    parser.add_argument("--out", type=Path, help="a folder, not benchmarks/results/<GPU>")
    parser.add_argument("--wheels", type=Path, default=WHEELS, help="a folder that travelled")
    parser.add_argument("--latents", type=Path, nargs="*", default=[], metavar="NPZ")
    parser.add_argument("--rehearse", action="store_true", help="tiny, in Triton's interpreter")
    options = parser.parse_args(given)
    if not options.minutes > 0:
        parser.error(f"--minutes must be above 0, got {options.minutes:g}")
    return options


def device_name(setting: Setting) -> str:
    """Return the GPU's name, from a process of its own, or a sentence if there is none."""
    if setting.rehearse:
        return "none"
    ask = "import torch; print(torch.cuda.get_device_name())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", ask],
            env=environment(PARTS[0], setting),
            capture_output=True,
            text=True,
            timeout=120,
        )
    except subprocess.TimeoutExpired:
        return _UNKNOWN
    return done.stdout.strip() if done.returncode == 0 else _UNKNOWN


def default_out(device: str, rehearse: bool) -> Path:
    """Return benchmarks/results/<GPU>, or for a rehearsal runs/, which git ignores."""
    if rehearse:
        return ROOT / "runs" / "gpu-first-rehearsal"
    slug = "-".join("".join(c if c.isalnum() else " " for c in device.lower()).split())
    return ROOT / "benchmarks" / "results" / slug


def revision() -> str:
    """Return the commit that is measured, or "" outside git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=7"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def run(parts: tuple[Part, ...], setting: Setting, minutes: float, record: Record) -> None:
    """Run all parts, one after the other; a part that fails does not stop the others."""
    begin = time.monotonic()

    def write() -> None:
        record.data["seconds"] = round(time.monotonic() - begin, 1)
        record.write()

    for number, part in enumerate(parts):
        left = 60.0 * minutes - (time.monotonic() - begin)
        if left < _LEAST_SECONDS:
            record.data["left_out"][part.name] = f"the {minutes:g} minutes were over"
            continue
        seconds = allotted(parts[number:], left)
        print(f"gpu-first: {part.name}, {seconds:.0f} s at most", flush=True)
        supervisor = Supervisor(part, setting, seconds, write)
        record.data["parts"][part.name] = supervisor.result
        result = supervisor.run()
        print(f"gpu-first: {part.name}: {result['state']}, {result['seconds']:.0f} s", flush=True)
    record.data["finished"] = True
    write()


def main(given: list[str] | None = None) -> int:
    """Return the exit status: 0 if every step of every part succeeded."""
    options = options_of(given)
    setting = Setting(Path(), options.rehearse, options.wheels.resolve(), options.latents)
    device = device_name(setting)
    out = (options.out or default_out(device, options.rehearse)).resolve()
    setting = Setting(out, options.rehearse, options.wheels.resolve(), options.latents)
    arguments = [
        Path(part).name if os.sep in part else part
        for part in (sys.argv[1:] if given is None else given)
    ]
    head = {
        "benchmark": "gpu_first",
        "rehearsal": options.rehearse,
        "device": device,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", "-m", "benchmarks.gpu_first", *arguments]),
        "revision": revision(),
        "minutes": options.minutes,
        "seconds": 0.0,
        "finished": False,
        "left_out": {},
    }
    record = Record(out / "first.json", head)
    record.write()
    parts = tuple(part for part in PARTS if part.name in options.part)
    run(parts, setting, options.minutes, record)
    print(f"gpu-first: the report is {record.path.with_suffix('.md')}")
    states = [part["state"] for part in record.data["parts"].values()]
    return 0 if all(state == "done" for state in states) and not record.data["left_out"] else 1


if __name__ == "__main__":
    sys.exit(main())
