"""A first contact goes on behind what fails, and its record is whole at every moment."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from benchmarks.gpu_first import __main__ as command
from benchmarks.gpu_first import plan, record, report, step, supervise, wheels
from benchmarks.gpu_first.plan import PARTS, Part, allotted
from benchmarks.gpu_first.step import Setting
from benchmarks.gpu_first.supervise import Supervisor

MADE_UP = Part("made_up", 1, "Steps that fail in every way.")
# A part as the package's own are, and the child's entry with it among the parts.
ENTRY = """
import sys, types
from benchmarks.gpu_first import child
from benchmarks.gpu_first.step import Step

{steps}

def _part(body):
    module = types.ModuleType("made up")
    module.steps = body
    return module

sys.modules["benchmarks.gpu_first.parts.made_up"] = _part(steps)
if __name__ == "__main__":
    sys.exit(child.main())
"""
ALL_WAYS = """
import os, signal, subprocess, time

def good(emit):
    emit(number=1.5)
    emit(number=2)

def raises(emit):
    emit(number=3)
    raise ValueError("the sum is wrong")

def crashes(emit):
    emit(number=4)
    os.kill(os.getpid(), signal.SIGSEGV)

def leaves(emit):
    os._exit(7)

def hangs(emit):
    emit(number=5)
    sleeper = subprocess.Popen(["sleep", "1000"])
    emit(pid=sleeper.pid)
    time.sleep(1000)

def steps(setting):
    calls = (good, raises, crashes, leaves, hangs, good)
    return [Step(f"{i} {c.__name__}", 2, c) for i, c in enumerate(calls)]
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a made-up part: gives its entry in the record."""

    def supervised(steps: str, seconds=60.0, changed=lambda result: None):
        entry = tmp_path / "made_up_entry.py"
        entry.write_text(ENTRY.format(steps=textwrap.dedent(steps)))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        setting = Setting(tmp_path)
        made = Supervisor(MADE_UP, setting, seconds, lambda: changed(made.result), entry.stem)
        return made.run()

    return supervised


def test_every_step_behind_a_failing_one_is_run(run):
    result = run(ALL_WAYS)
    states = {step["name"]: step["state"] for step in result["steps"]}
    assert states == {
        "0 good": "done",
        "1 raises": "failed",
        "2 crashes": "crashed",
        "3 leaves": "crashed",
        "4 hangs": "cut",
        "5 good": "done",
    }
    assert result["state"] == "incomplete"
    # What a step had measured before it failed is kept.
    numbers = [[r["number"] for r in s["rows"] if "number" in r] for s in result["steps"]]
    assert numbers == [[1.5, 2], [3], [4], [], [5], [1.5, 2]]
    errors = [step.get("error", "") for step in result["steps"]]
    assert "ValueError: the sum is wrong" in errors[1]
    assert errors[2] == "the process ended with SIGSEGV"
    assert "Segmentation fault" in result["steps"][2]["log"]
    assert errors[3] == "the process ended with status 7"
    assert "Segmentation fault" not in result["steps"][3]["log"]  # another process's
    assert errors[4] == "it took more than 2 s"
    # What the hanging step had started is gone, too.
    (pid,) = [row["pid"] for row in result["steps"][4]["rows"] if "pid" in row]
    assert not _is_running(pid)


def _is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_part_whose_time_is_over_is_cut(run):
    begin = time.monotonic()
    result = run(ALL_WAYS.replace("good, raises, crashes, leaves, ", ""), seconds=1.5)
    assert time.monotonic() - begin < 20
    assert [step["state"] for step in result["steps"]] == ["cut", "not begun"]
    assert result["steps"][0]["error"] == "the part's time was over"
    assert result["state"] == "incomplete"


def test_no_step_begins_after_the_part_s_time(run):
    result = run(
        """
        import time

        def slow(emit):
            time.sleep(0.7)

        def steps(setting):
            return [Step(str(i), 10, slow) for i in range(50)]
        """,
        seconds=3.0,
    )
    states = [step["state"] for step in result["steps"]]
    assert states[0] == "done"
    assert states[-1] == "not begun"


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        (
            "def steps(setting): raise RuntimeError('no CUDA device')",
            "RuntimeError: no CUDA device",
        ),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("import os; os.abort()", "ended with SIGABRT"),
    ],
    ids=["raises", "does not import", "aborts"],
)
def test_a_part_without_steps_says_why(run, steps, why):
    result = run(steps)
    assert result["state"] == "failed"
    assert why in result["error"] + result.get("log", "")


def test_a_spoilt_context_costs_one_step(run):
    """As a bad memory access does: every later call of CUDA fails until the process is another."""
    result = run(
        """
        import torch

        spoilt = []

        def synchronize():
            if spoilt:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")

        torch.cuda.is_initialized = lambda: True
        torch.cuda.synchronize = synchronize

        def bad(emit):
            spoilt.append(1)
            synchronize()

        def good(emit):
            synchronize()
            emit(number=1)

        def steps(setting):
            return [Step("good", 30, good), Step("bad", 30, bad), Step("good again", 30, good)]
        """
    )
    assert [step["state"] for step in result["steps"]] == ["done", "failed", "done"]
    assert "illegal memory access" in result["steps"][1]["error"]


def test_the_record_is_whole_after_every_row(run, tmp_path):
    """Each change is written; the JSON is valid then, and the report names what failed."""
    kept = record.Record(tmp_path / "first.json", _head())
    seen = []

    def changed(result):
        kept.data["parts"]["made_up"] = result
        kept.write()
        seen.append(json.loads(kept.path.read_text()))

    run(ALL_WAYS, changed=changed)
    assert len(seen) >= 4
    counts = [sum(len(s["rows"]) for s in r["parts"]["made_up"]["steps"]) for r in seen]
    assert counts == sorted(counts)
    assert counts[-1] == 8
    text = kept.path.with_suffix(".md").read_text()
    problems = text.partition("## Parts")[0]
    assert "- **made_up**, 1 raises: failed: ValueError: the sum is wrong" in problems
    assert "- **made_up**, 2 crashes: crashed: the process ended with SIGSEGV" in problems
    assert "- **made_up**, 4 hangs: cut: it took more than 2 s" in problems
    assert "5 good" not in problems


def _head(**changes):
    head = {
        "rehearsal": False,
        "device": "NVIDIA H200",
        "date": "today",
        "revision": "abc",
        "command": "python -m benchmarks.gpu_first",
        "minutes": 30.0,
        "seconds": 1.0,
        "finished": True,
        "left_out": {},
        "parts": {},
    }
    return head | changes


def test_a_rehearsal_cannot_be_taken_for_a_measurement():
    assert "REHEARSAL" not in report.markdown(_head())
    text = report.markdown(_head(rehearsal=True, device="none"))
    assert text.startswith("# REHEARSAL")
    assert "Nothing here was measured on a GPU" in text


def test_equal_failures_are_told_once():
    steps = [
        {"name": name, "state": "failed", "rows": [], "error": "Traceback\nValueError: no"}
        for name in ("one", "two")
    ]
    part = {"about": "", "state": "incomplete", "steps": steps}
    text = report.markdown(_head(parts={"triage": part}, left_out={"peers": "no time"}))
    assert "- **triage**, one; two: failed: ValueError: no\n" in text
    assert "- **peers** was not begun: no time\n" in text
    assert text.count("Traceback") == 1


def test_a_whole_run_goes_on_behind_parts_that_fail(tmp_path, monkeypatch, capsys):
    """The parts are the package's own names; one crashes, one has no steps, one is right."""
    bodies = {
        "versions": "def steps(setting): raise RuntimeError('broken')",
        "probe": "def steps(setting): return [Step('x', 9, lambda emit: __import__('os').abort())]",
        "times": "def steps(setting): return [Step('y', 9, lambda emit: emit(us=70.0))]",
    }
    for name, body in bodies.items():
        text = ENTRY.format(steps=body).replace("parts.made_up", f"parts.{name}")
        (tmp_path / f"entry_{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def supervisor(part, setting, seconds, changed):
        return Supervisor(part, setting, seconds, changed, f"entry_{part.name}")

    monkeypatch.setattr(command, "Supervisor", supervisor)
    monkeypatch.setattr(command, "device_name", lambda setting: "NVIDIA H100")
    out = tmp_path / "out"
    assert command.main(["--part", *bodies, "--minutes", "1", "--out", str(out)]) == 1
    found = json.loads((out / "first.json").read_text())
    assert found["finished"]
    assert {n: p["state"] for n, p in found["parts"].items()} == {
        "versions": "failed",
        "probe": "incomplete",
        "times": "done",
    }
    assert str(step.ROOT) not in (out / "first.json").read_text()
    assert "the report is" in capsys.readouterr().out


def test_parts_behind_the_end_are_named(tmp_path):
    kept = record.Record(tmp_path / "first.json", _head(left_out={}))
    command.run(PARTS[:2], Setting(tmp_path), 0.01, kept)
    assert kept.data["left_out"] == {part.name: "the 0.01 minutes were over" for part in PARTS[:2]}


def test_time_that_a_part_leaves_goes_to_the_others():
    assert sum(allotted(PARTS[i:], 60.0) > 0 for i in range(len(PARTS))) == len(PARTS)
    two = (Part("a", 1, ""), Part("b", 3, ""))
    assert allotted(two, 400.0) == 100.0
    assert allotted(two[1:], 400.0 - 10.0) == 390.0
    assert allotted(two[1:], 4000.0) == plan.MOST_SECONDS == 540.0
    # Where there is little time, no part gets too little to begin.
    assert allotted((two[0], Part("c", 99, "")), 100.0) == two[0].least == 30.0
    assert allotted(two, 10.0) == 10.0


@pytest.mark.parametrize("minutes", ["0", "-1", "nan"])
def test_minutes_must_be_above_zero(minutes, capsys):
    with pytest.raises(SystemExit):
        command.options_of(["--minutes", minutes])
    assert "--minutes must be above 0" in capsys.readouterr().err


def test_the_machine_s_own_packages_come_first_and_no_warning_is_an_error(tmp_path):
    variables = supervise.environment(MADE_UP, Setting(tmp_path))
    assert variables["PYTHONPATH"].split(os.pathsep)[:2] == [str(step.ROOT), str(step.PACKAGES)]
    assert "TRITON_INTERPRET" not in variables or "TRITON_INTERPRET" in os.environ
    rehearsed = supervise.environment(MADE_UP, Setting(tmp_path, rehearse=True))
    assert rehearsed["TRITON_INTERPRET"] == "1"
    assert rehearsed["VQVAE_FAST_BACKEND"] == "triton"


def test_this_side_needs_the_standard_library_alone():
    """Whatever is broken in torch or Triton there, a report is written."""
    script = (
        "import sys; import benchmarks.gpu_first.__main__, benchmarks.gpu_first.child\n"
        "bad = {'torch', 'numpy', 'triton', 'click'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", script], cwd=step.ROOT, check=True)


def test_a_setting_survives_its_way_to_the_part():
    setting = Setting(Path("out"), True, Path("wheels"), [Path("a.npz"), Path("b c.npz")])
    assert Setting.from_json(setting.to_json()) == setting


def test_wheels_are_fetched_for_the_other_machine(tmp_path, monkeypatch):
    given = []

    def call(arguments):
        given.extend(arguments)
        (tmp_path / "x.whl").write_bytes(b"")

        class Done:
            returncode = 0

        return Done

    monkeypatch.setattr(wheels.subprocess, "run", call)
    assert wheels.main(["--to", str(tmp_path), "--python", "3.12", "--no-trained"]) == 0
    text = " ".join(given)
    assert "--python-version 3.12" in text
    assert "--abi cp312" in text
    assert "--no-deps --only-binary=:all:" in text
    names = [line.partition("==")[0] for line in wheels._LIST.read_text().splitlines()]
    assert {"pytest", "flash-kmeans", "click"} <= set(names)
