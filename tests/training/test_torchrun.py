"""``torchrun -m vqvae_fast.cli train``: one run, whatever the number of processes."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from vqvae_fast.cli import main
from vqvae_fast.training import load_model
from vqvae_fast.training.runlock import locked

# The loss has no part that is drawn at random with "gradient".
OPTIONS = {
    "--codebook-size": 16,
    "--dim": 4,
    "--batch-size": 5,
    "--quantizer": "gradient",
    "--lr": 1e-3,
    "--device": "cpu",
}


def command(processes, *arguments):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *launcher, "-m", "vqvae_fast.cli", "train", *map(str, arguments)]


def train(processes, *arguments):
    """Trains in so many processes; returns what was printed and what was written to stderr."""
    done = subprocess.run(
        command(processes, *arguments),
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def train_alone(*arguments):
    """Trains in this process, in one thread, too; returns what was printed."""
    out, threads = io.StringIO(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as end:
            main(["train", *map(str, arguments)])
    finally:
        torch.set_num_threads(threads)
    assert end.value.code == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "tiny.npy"
    np.save(path, np.random.default_rng(7).integers(256, size=(20, 16, 16, 3), dtype=np.uint8))
    return path


@pytest.fixture(scope="module")
def options(images):
    return ["--data", images, *(part for pair in OPTIONS.items() for part in pair)]


@pytest.fixture(scope="module")
def runs(options, tmp_path_factory):
    """Of 1, 2 and 3 processes: the folder, and what was printed."""
    folder = tmp_path_factory.mktemp("runs")
    runs = {
        n: (folder / str(n), [*options, "--steps", 30, "--out", folder / str(n)]) for n in (1, 2, 3)
    }
    return {
        n: (run, train(n, *arguments)[0] if n > 1 else train_alone(*arguments))
        for n, (run, arguments) in runs.items()
    }


def rows(run: Path):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_the_run_is_that_of_one_process(runs, processes):
    """Five images a batch: the shares are not equal."""
    expected, found = rows(runs[1][0]), rows(runs[processes][0])
    assert [row["step"] for row in found] == [10, 20, 30]
    for one, several in zip(expected, found, strict=True):
        assert one == pytest.approx(several, rel=1e-3)
    weights = load_model(runs[1][0]).state_dict()
    for name, weight in load_model(runs[processes][0]).state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-3, atol=1e-4)
    figures = [json.loads((runs[n][0] / "result.json").read_text()) for n in (1, processes)]
    for part in ("held_out", "training"):
        assert figures[0][part] == pytest.approx(figures[1][part], rel=1e-3)


@pytest.mark.slow
def test_the_first_process_alone_speaks_and_writes(runs):
    run, said = runs[3]
    assert said.count("held out  PSNR") == 1
    assert "3 processes" in said
    assert {path.name for path in run.iterdir()} == {path.name for path in runs[1][0].iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", ["gradient", "ema"])
def test_a_resumed_run_goes_on_as_the_whole_one(options, runs, tmp_path, quantizer):
    options, whole = [*options, "--quantizer", quantizer], runs[2][0]
    if quantizer != OPTIONS["--quantizer"]:
        whole = tmp_path / "whole"
        train(2, *options, "--steps", 30, "--out", whole)
    train(2, *options, "--steps", 10, "--out", tmp_path / "parts")
    said, errors = train(2, "--resume", tmp_path / "parts", "--steps", 30)
    assert said.count("resuming at step 10") == 1
    assert "Warning" not in errors
    assert rows(tmp_path / "parts") == rows(whole)
    # And in one process.
    train_alone("--resume", tmp_path / "parts", "--steps", 40)
    assert rows(tmp_path / "parts")[-1]["step"] == 40


@pytest.mark.slow
def test_a_signal_ends_all_with_a_checkpoint(options, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(2, *options, "--steps", 1_000_000, "--out", run),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 60
    while not (run / "metrics.jsonl").is_file() or not rows(run):
        assert time.monotonic() < end
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to the launcher and to its processes
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert f"vqvae-fast train --resume {run}" in said
    step = rows(run)[-1]["step"]
    train_alone("--resume", run, "--steps", step + 20)
    assert rows(run)[-1]["step"] == step + 20


@pytest.mark.slow
def test_a_lost_process_ends_the_others(options, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(2, *options, "--steps", 1_000_000, "--out", run),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + 60
    while not (run / "metrics.jsonl").is_file() or not rows(run):
        assert time.monotonic() < end
        time.sleep(0.2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "SIGKILL" in said or "exitcode  : -9" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--no-such-option"], "vqvae-fast: No such option"),
        (["--quantizer", "none"], "vqvae-fast: Invalid value for '--quantizer'"),
        (["--data", "nowhere"], "vqvae-fast: data not found: nowhere"),
        (["--resume", "nowhere"], "vqvae-fast: "),
        (
            ["--batch-size", 1],
            "vqvae-fast: batch_size must be at least the number of processes, 2, got 1",
        ),
    ],
)
def test_a_user_s_error_is_said_once(options, tmp_path, arguments, sentence):
    given = (
        arguments if "--resume" in arguments else [*options, *arguments, "--out", tmp_path / "r"]
    )
    begin = time.monotonic()
    done = subprocess.run(command(2, *given), capture_output=True, text=True, timeout=120)
    said = done.stderr
    assert done.returncode != 0
    assert said.count("Traceback") == 1, said  # the launcher's own
    assert said.count("vqvae-fast: ") == said.count(sentence) == 1, said
    assert time.monotonic() - begin < 20  # no process has waited for its patience to end
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_what_another_process_alone_finds_is_said_by_the_first(options, tmp_path):
    """The folder of the data is there for one process alone, as on another machine."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "if os.environ['RANK'] == '1': os.chdir('/')\n"
        "from vqvae_fast.cli import main\n"
        "main(['train', *sys.argv[1:]])\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    arguments = [*options, "--data", "here.npy", "--out", tmp_path / "run"]
    (tmp_path / "here.npy").write_bytes(Path(options[1]).read_bytes())
    done = subprocess.run(
        [*launcher, script, *map(str, arguments)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode != 0
    assert done.stderr.count("vqvae-fast: process 1: data not found: here.npy") == 1
    assert done.stderr.count("vqvae-fast: ") == 1


@pytest.mark.slow
def test_what_the_first_process_alone_finds_ends_all(options, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "mine.txt").write_text("here")
    done = subprocess.run(
        command(2, *options, "--steps", 2, "--out", run),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "vqvae-fast: " in done.stderr
    assert "gloo" not in done.stderr.lower()  # nobody waited in a collective for who had gone


@pytest.mark.slow
def test_a_run_that_is_being_written_is_refused_by_all(options, tmp_path):
    run = tmp_path / "run"
    train_alone(*options, "--steps", 2, "--out", run)
    before = {path: path.read_bytes() for path in run.iterdir()}
    with locked(run):
        done = subprocess.run(
            command(2, "--resume", run, "--steps", 4), capture_output=True, text=True, timeout=120
        )
    assert done.returncode != 0
    assert f"another process is writing to the run folder {run}" in done.stderr
    assert "gloo" not in done.stderr.lower()
    assert {path: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.slow
def test_a_large_codebook_s_run_is_that_of_one_process(options, tmp_path):
    options = [*options, "--quantizer", "ema", "--codebook-size", 250, "--steps", 30]
    train_alone(*options, "--out", tmp_path / "1")
    train(2, *options, "--out", tmp_path / "2")
    one, two = (rows(tmp_path / str(n)) for n in (1, 2))
    # k-means has its samples after 13 steps: until then there is nothing to say of the codes.
    figures = {name: one[0].pop(name) for name in ("loss", "mse")}
    assert figures == pytest.approx({name: two[0].pop(name) for name in figures}, rel=1e-4)
    assert one[0] == two[0]
    assert one[0]["perplexity"] is None
    for expected, found in zip(one[1:], two[1:], strict=True):  # drawn otherwise from there on
        assert expected["loss"] == pytest.approx(found["loss"], rel=1e-3)
        assert expected["perplexity"] == pytest.approx(found["perplexity"], rel=0.5)


ALONE_AGAIN = """
import sys
from pathlib import Path
from vqvae_fast.training import TrainConfig, train
from vqvae_fast.training.processes import launched

def threads():
    return {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}

data, run = sys.argv[1:]
with launched():
    train(TrainConfig(data=data, codebook_size=16, batch_size=4, steps=2, device="cpu", out=run))
    assert any("gloo" in name for name in threads()), threads()
assert not any("gloo" in name for name in threads()), threads()
"""


@pytest.mark.slow
def test_no_thread_of_the_processes_outlives_them(images, tmp_path):
    """One that lets go of a tensor while the interpreter ends brings the process down."""
    script = tmp_path / "script.py"
    script.write_text(ALONE_AGAIN)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, script, images, tmp_path / "run"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
