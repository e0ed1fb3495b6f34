import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vqvae_fast
from vqvae_fast.cli import main

SMALL = ["--codebook-size", "32", "--dim", "8", "--batch-size", "2", "--device", "cpu"]


def call(*arguments: object) -> int:
    """Run the command line in this process; its exit status."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return exit_.value.code


@pytest.fixture
def images(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(256, size=(10, 16, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    return tmp_path / "images.npy"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(1).integers(256, size=(19, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def child(*arguments: object, cwd: Path, **options: object) -> subprocess.Popen:
    root = str(Path(vqvae_fast.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-m", "vqvae_fast.cli", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": root, "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_train_resume_reconstruct(images, picture, tmp_path, capsys):
    run = tmp_path / "run"
    # 32 vectors a step: the 128 vectors of k-means are complete after four.
    assert call("train", "--data", images, "--out", run, "--steps", "4", *SMALL) == 0
    out = capsys.readouterr().out
    assert "10 images, crops of 16x16; 20% of them held out" in out
    assert "held out  PSNR" in out
    assert "of 32 in use" in out
    for name in ("reconstructions.png", "curves.png", "usage.png"):
        assert pixels_of(run / name).shape[1] > 500
    config = json.loads((run / "config.json").read_text())
    assert (config["codebook_size"], config["dim"], config["steps"]) == (32, 8, 4)

    assert call("train", "--resume", run, "--steps", "5") == 0
    assert "resuming at step 4" in capsys.readouterr().out
    assert json.loads((run / "result.json").read_text())["step"] == 5

    assert call("reconstruct", picture, "--run", run, "-o", tmp_path / "back.png") == 0
    out = capsys.readouterr().out
    original, decoded = pixels_of(picture) / 255, pixels_of(tmp_path / "back.png") / 255
    assert decoded.shape == original.shape
    psnr = -10 * math.log10(np.mean((original - decoded) ** 2))
    assert f"PSNR   {psnr:.2f} dB" in out
    assert f"{5 * 8 * 5 / (19 * 30):.4f} bits per pixel" in out


def test_every_option_reaches_the_config(images, tmp_path, capsys):
    run = tmp_path / "run"
    given = {
        "--crop": 12,
        "--held-out": 0.3,
        "--quantizer": "gradient",
        "--codebook-size": 8,
        "--dim": 4,
        "--batch-size": 3,
        "--steps": 1,
        "--lr": 0.01,
        "--seed": 5,
        "--device": "cpu",
        "--dtype": "bf16",
        "--data": images,
        "--out": run,
    }
    arguments = [str(value) for pair in given.items() for value in pair]
    assert call("train", *arguments) == 0
    config = json.loads((run / "config.json").read_text())
    for option, value in given.items():
        expected = str(value) if isinstance(value, Path) else value
        assert config[option.strip("-").replace("-", "_")] == expected


@pytest.mark.slow
def test_the_photographs_can_be_chosen(tmp_path, capsys):
    run = tmp_path / "run"
    names = ("--photographs", "coffee, china")
    assert call("train", "--out", run, "--steps", 1, *names, *SMALL) == 0
    assert json.loads((run / "config.json").read_text())["photographs"] == ["coffee", "china"]
    assert "2 photographs" in capsys.readouterr().out


@pytest.mark.slow
def test_lines_take_the_place_of_the_bar_where_there_is_no_terminal(images, tmp_path, capsys):
    assert call("train", "--data", images, "--out", tmp_path / "r", "--steps", "250", *SMALL) == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("step 250/250: loss ")
    assert "codes" in err
    assert "held-out" in err


def test_bar_shows_the_figures(images, tmp_path, capsys):
    arguments = ["--data", images, "--out", tmp_path / "r", "--steps", "12", *SMALL]
    assert call("train", *arguments, "--progress") == 0
    err = capsys.readouterr().err
    for part in ("12/12", "loss", "recon", "dB", "perplexity", "/32", "img/s"):
        assert part in err


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_that_resumes_on_the_same_trajectory(images, tmp_path):
    steps = 100_000
    arguments = ["--data", images, "--out", "run", "--steps", steps, *SMALL]
    process = child("train", *arguments, cwd=tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            assert time.monotonic() < deadline, "no metrics after a minute"
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "continue with: vqvae-fast train --resume run" in err
    stopped = int(err.split("stopped at step ")[1].split(";")[0])

    resumed_rows = stopped + 10
    assert call("train", "--resume", tmp_path / "run", "--steps", resumed_rows) == 0
    whole = ["--data", images, "--out", tmp_path / "whole", "--steps", resumed_rows, *SMALL]
    assert call("train", *whole) == 0
    assert metrics.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_photographs_are_trained_on_and_drawn(tmp_path, capsys):
    run = tmp_path / "run"
    assert call("train", "--out", run, "--steps", 10, *SMALL) == 0
    out = capsys.readouterr().out
    assert "8 photographs" in out
    assert f"pictures  {run}/reconstructions.png" in out
    for name in ("reconstructions", "curves", "usage"):
        pixels = pixels_of(run / f"{name}.png")
        assert min(pixels.shape[:2]) > 100
        assert pixels.std() > 1  # something is drawn
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10]


def test_a_run_resumes_from_another_folder(images, tmp_path, monkeypatch):
    monkeypatch.chdir(images.parent)
    assert call("train", "--data", images.name, "--out", "run", "--steps", 1, *SMALL) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert call("train", "--resume", tmp_path / "run", "--steps", 2) == 0


def test_module_can_be_run(tmp_path):
    process = child("--version", cwd=tmp_path)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == f"vqvae-fast {vqvae_fast.__version__}\n"


def test_help_without_a_command(capsys):
    assert call() == 0
    out = capsys.readouterr().out
    for command in ("train", "reconstruct", "info"):
        assert command in out


def test_library_imports_none_of_the_extras():
    code = (
        "import sys, torch\n"
        "by_torch = set(sys.modules)\n"  # torch imports tqdm if it is there
        "import vqvae_fast, vqvae_fast.models, vqvae_fast.backends\n"
        "extras = {'click', 'tqdm', 'PIL', 'matplotlib', 'skimage', 'sklearn'}\n"
        "sys.exit(', '.join(extras & (set(sys.modules) - by_torch)) or 0)"
    )
    root = str(Path(vqvae_fast.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_a_missing_click_is_told_in_one_sentence():
    # None in sys.modules makes an import fail as that of an absent package does.
    code = (
        "import sys\n"
        "sys.modules['click'] = None\n"
        "from vqvae_fast.cli import main\n"
        "main(['--version'])"
    )
    root = str(Path(vqvae_fast.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "click is not installed: pip install click" in result.stderr


def test_a_run_without_codes_is_told_before_and_after(images, tmp_path, capsys):
    run = tmp_path / "run"
    assert call("train", "--data", images, "--out", run, "--steps", "2", *SMALL) == 0
    out = capsys.readouterr().out
    assert out.count("which takes 4 steps: after 2 the model has no codes yet\n") == 1
    assert f"there are no codes; continue with: vqvae-fast train --resume {run} --steps N" in out
    assert "codes     " not in out
    assert call("train", "--resume", run, "--steps", "4") == 0
    out = capsys.readouterr().out
    assert "no codes" not in out
    assert "of 32 in use" in out
