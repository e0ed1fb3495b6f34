"""Watches a part's process: ends a step that hangs, and restarts after a step that crashed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.gpu_first.child import SPOILT
from benchmarks.gpu_first.plan import Part
from benchmarks.gpu_first.step import PACKAGES, ROOT, Setting

_POLL_SECONDS = 0.1
_LOG_CHARACTERS = 2000
# A process may take this long to import torch and list the steps.
_START_SECONDS = 120.0


def environment(part: Part, setting: Setting) -> dict[str, str]:
    """Return a process's variables, with which it imports this tree and the wheels' packages."""
    paths = [str(ROOT), str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    made = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), str(PACKAGES / "bin")]),
        "PYTHONFAULTHANDLER": "1",
    }
    if setting.rehearse:
        made["TRITON_INTERPRET"] = "1" if part.interprets else "0"
        made |= {"VQVAE_FAST_BACKEND": "triton"} if part.interprets else {}
    return made


class Supervisor:
    """Runs one part, in as many processes as it needs.

    Attributes:
        result: the part's entry in the record, up to date after every ``changed()``.
    """

    def __init__(
        self,
        part: Part,
        setting: Setting,
        seconds: float,
        changed: Callable[[], None],
        module: str = "benchmarks.gpu_first.child",
    ):
        self.result: dict[str, Any] = {"about": part.about, "state": "running", "steps": []}
        self._part, self._setting, self._changed, self._module = part, setting, changed, module
        self._begin = time.monotonic()
        self._end = self._begin + seconds
        logs = setting.out / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._log, self._events = logs / f"{part.name}.log", logs / f"{part.name}.jsonl"
        self._events.write_text("", encoding="utf-8")
        self._read = 0
        self._running: int | None = None
        self._log_begin = 0  # where the log of the present process begins

    def run(self) -> dict[str, Any]:
        """Run the part and return its entry in the record."""
        first = 0
        with self._log.open("w", encoding="utf-8") as log:
            while True:
                status = self._watch(self._start(first, log))
                after = self._last_begun() + 1
                if status == 0 or self.result["state"] != "running":
                    break
                if after == first and self._running is None:
                    self._give_up(f"its process ended with {_status(status)}")
                    self.result["log"] = self._last_words()
                    break
                first = after
                if first >= len(self.result["steps"]) or time.monotonic() >= self._end:
                    break
        self._close()
        return self.result

    def _start(self, first: int, log: Any) -> "subprocess.Popen[bytes]":
        self._running = None
        self._log_begin = self._log.stat().st_size
        command = [sys.executable, "-m", self._module, self._part.name]
        command += ["--events", str(self._events), "--setting", self._setting.to_json()]
        left = self._end - time.monotonic()
        command += ["--first", str(first), "--seconds", f"{left:.1f}"]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(self._part, self._setting),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def _watch(self, process: "subprocess.Popen[bytes]") -> int | None:
        """Returns the status of the process; None if the supervisor ended it."""
        started = moved = time.monotonic()
        try:
            while process.poll() is None:
                running = self._running
                self._take_events()
                now = time.monotonic()
                if self._running != running:
                    moved = now
                limit = self._limit(started if self._running is None else moved)
                if now > limit:
                    _kill(process)
                    self._take_events()
                    self._cut(now >= self._end)
                    return None
                time.sleep(_POLL_SECONDS)
        finally:
            _kill(process)  # ends processes that it left, or the whole group at Ctrl-C
        self._take_events()
        if process.returncode not in (0, SPOILT) and self._running is not None:
            self._end_step("crashed", f"the process ended with {_status(process.returncode)}")
            self.result["steps"][self._last_begun()]["log"] = self._last_words()
        return process.returncode

    def _limit(self, since: float) -> float:
        if self._running is None:
            return min(self._end, since + _START_SECONDS)
        return min(self._end, since + self.result["steps"][self._running]["allowed_seconds"])

    def _take_events(self) -> None:
        with self._events.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            self._take(json.loads(line))
        if whole:
            self._changed()

    def _take(self, event: dict[str, Any]) -> None:
        steps = self.result["steps"]
        match event["event"]:
            case "steps":
                if not steps:
                    steps += [
                        {
                            "name": step["name"],
                            "allowed_seconds": step["seconds"],
                            "state": "not begun",
                            "rows": [],
                        }
                        for step in event["steps"]
                    ]
            case "begin":
                self._running = event["step"]
                steps[event["step"]]["state"] = "running"
            case "row":
                steps[event["step"]]["rows"].append(event["row"])
            case "end":
                self._running = None
                step = steps[event["step"]]
                step["state"] = "failed" if event["error"] else "done"
                step |= {k: event[k] for k in ("seconds", "error") if event[k] is not None}
            case "unusable":
                self._give_up(event["error"])

    def _cut(self, part_is_over: bool) -> None:
        if self._running is None:
            self._give_up("it did not begin a step in time")
            return
        allowed = self.result["steps"][self._running]["allowed_seconds"]
        why = "the part's time was over" if part_is_over else f"it took more than {allowed:g} s"
        self._end_step("cut", why)

    def _end_step(self, state: str, why: str) -> None:
        assert self._running is not None
        self.result["steps"][self._running] |= {"state": state, "error": why}

    def _last_begun(self) -> int:
        """Returns the number of the last step that has begun, or -1."""
        states = [step["state"] for step in self.result["steps"]]
        return max((i for i, state in enumerate(states) if state != "not begun"), default=-1)

    def _give_up(self, why: str) -> None:
        self.result |= {"state": "failed", "error": why}

    def _close(self) -> None:
        steps = self.result["steps"]
        if self.result["state"] == "running":
            bad = [step for step in steps if step["state"] != "done"]
            self.result["state"] = "done" if not bad else "incomplete"
        self.result["seconds"] = round(time.monotonic() - self._begin, 1)
        self._changed()

    def _last_words(self) -> str:
        with self._log.open("rb") as file:
            file.seek(self._log_begin)
            text = file.read().decode(errors="replace").strip()
        return text[-_LOG_CHARACTERS:]


def _status(status: int | None) -> str:
    """Returns the status in words, with the name of a signal."""
    if status is not None and status < 0:
        return signal.Signals(-status).name
    return f"status {status}"


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Ends the process and all processes that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
