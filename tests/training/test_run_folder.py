"""Run folders: made whole or not at all, written to by one process at a time."""

import dataclasses
import os
import signal
import subprocess
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest

from vqvae_fast.training import UserError, resume, train
from vqvae_fast.training.runfolder import new_run
from vqvae_fast.training.runlock import LOCK, locked


def fill(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def make(out: Path | None, label: str = "x") -> Path:
    with new_run(None if out is None else str(out), label, fill) as run:
        return run


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_run_folder_is_never_one_that_holds_something(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine")
    for out, sentence in (
        ("used", "not empty and is not overwritten"),
        ("used/thesis.txt", "is a file"),
        ("used/thesis.txt/run", "cannot be made"),
        ("n" * 256, "cannot be made: File name too long"),
    ):
        with pytest.raises(UserError, match=sentence):
            make(tmp_path / out)
    assert os.listdir(tmp_path) == ["used"]
    assert os.listdir(tmp_path / "used") == ["thesis.txt"]


def test_an_empty_folder_is_filled_where_it_is(tmp_path, monkeypatch):
    """It may be a mount, which nothing can be renamed to, or the folder that one is in."""
    (tmp_path / "empty").mkdir()
    before = (tmp_path / "empty").stat().st_ino
    monkeypatch.chdir(tmp_path / "empty")
    assert make(Path(".")) == Path(".")
    assert (tmp_path / "empty").stat().st_ino == before
    assert sorted(os.listdir(tmp_path / "empty")) == [LOCK, "config.json"]


def test_a_folder_with_nothing_but_the_lock_of_a_killed_start_is_empty(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).touch()
    assert make(tmp_path / "run") == tmp_path / "run"


def test_nothing_is_left_where_a_folder_cannot_be_filled(tmp_path):
    def fail(folder: Path) -> None:
        fill(folder)
        raise OSError(28, "No space left on device")

    with (
        pytest.raises(UserError, match=r"run cannot be made: No space"),
        new_run(str(tmp_path / "run"), "x", fail),
    ):
        pass
    assert os.listdir(tmp_path) == []


def test_a_new_folder_appears_when_it_is_complete_and_has_ordinary_permissions(tmp_path):
    seen = []

    def look(folder: Path) -> None:
        seen.append((tmp_path / "deep" / "run").exists())
        fill(folder)

    with new_run(str(tmp_path / "deep" / "run"), "x", look) as run:
        assert sorted(os.listdir(run)) == [LOCK, "config.json"]
    assert seen == [False]
    (tmp_path / "other").mkdir()
    assert run.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("exists", [False, True])
def test_of_many_starts_at_once_one_gets_the_folder(tmp_path, exists):
    if exists:
        (tmp_path / "run").mkdir()

    def start(number: int) -> int | None:
        def fill(folder: Path) -> None:
            (folder / "config.json").write_text(str(number))

        try:
            with new_run(str(tmp_path / "run"), "x", fill):
                return number
        except UserError:
            return None

    with ThreadPool(8) as pool:
        (winner,) = [n for n in pool.map(start, range(32), chunksize=1) if n is not None]
    assert (tmp_path / "run" / "config.json").read_text() == str(winner)
    assert os.listdir(tmp_path) == ["run"]


def test_starts_at_once_get_different_chosen_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPool(8) as pool:
        made = pool.map(lambda _: make(None, "a"), range(16), chunksize=1)
    assert sorted(made) == sorted(Path("runs", f"a-{n}") for n in range(1, 17))


def test_a_locked_run_is_refused_and_left_as_it_is(tiny, no_pictures):
    run = train(dataclasses.replace(tiny, steps=3)).run
    before = snapshot(run)
    with locked(run), pytest.raises(UserError, match="another process is writing to the run"):
        resume(run, steps=6)
    assert snapshot(run) == before
    assert resume(run, steps=6).step == 6


def test_a_run_is_locked_from_its_start_to_its_end(tiny, no_pictures):
    refused = []

    def try_to_resume(line: str) -> None:
        if line.startswith("run "):
            with pytest.raises(UserError, match="another process"):
                resume(tiny.out, steps=tiny.steps + 1)
            refused.append(line)

    train(tiny, say=try_to_resume)
    resume(tiny.out, steps=tiny.steps + 1, say=lambda line: None)
    assert len(refused) == 1


HOLD = """
import sys
from pathlib import Path
from vqvae_fast.training.runlock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another process"), locked(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    with locked(tmp_path):
        pass


def test_a_long_name_of_the_data_leaves_room_for_that_of_the_run(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / ("\N{GRINNING FACE}" * 60 + ".npy")
    Path(tiny.data).rename(data)
    run = train(dataclasses.replace(tiny, data=str(data), out=None, steps=1)).run
    assert run.name.endswith("-ema-1")
