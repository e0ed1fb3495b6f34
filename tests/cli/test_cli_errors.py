"""Whatever is wrong with the input: one sentence on stderr, a status, nothing overwritten."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqvae_fast.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    np.save(folder / "x.npy", np.random.default_rng(0).random((10, 16, 16, 3)))
    options = "--steps 1 --codebook-size 8 --dim 4 --batch-size 2 --device cpu"
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--data", f"{folder}/x.npy", "--out", f"{folder}/run", *options.split()])
    assert exit_.value.code == 0
    return folder / "run"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with things that are no good."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine")
    (tmp_path / "text.png").write_text("not a picture")
    Image.new("RGB", (20, 20)).save(tmp_path / "good.png")
    (tmp_path / "small").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "small" / "small.png")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "pipes").mkdir()
    for name in ("pipe.png", "pipe.npz", "real_pipe", "pipe.safetensors"):
        os.mkfifo(tmp_path / name)
    for name in ("x.png", "data_batch_1.bin"):
        os.mkfifo(tmp_path / "pipes" / name)
    (tmp_path / "pipe.npy").symlink_to("real_pipe")
    (tmp_path / "device.pt").symlink_to(os.devnull)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket.npz")
    np.save(tmp_path / "flat.npy", np.zeros((4, 32, 32)))
    np.save(tmp_path / "ints.npy", np.zeros((4, 32, 32, 3), np.int32))
    np.save(tmp_path / "one_colour.npy", np.zeros((10, 32, 32, 3), np.uint8))
    return tmp_path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("train --data nowhere", "data not found: nowhere"),
        ("train --data empty", "no images in empty"),
        ("train --data small", "small.png is too small for crops of 32 pixels: it is 20x20"),
        ("train --data broken", "broken.jpg"),
        ("train --data text.png", "must be a folder of images, a .npy or a .npz file"),
        ("train --data flat.npy", "got [4, 32, 32]"),
        ("train --data ints.npy", "uint8 or float, got int32"),
        ("train --data one_colour.npy", "all of one colour"),
        ("train --data cifar10:empty", "data_batch_1.bin is missing"),
        ("train --data cifar10:nowhere", "folder not found: nowhere"),
        ("train --photographs mona_lisa", "got mona_lisa"),
        ("train --photographs ,", "at least one photograph"),
        ("train --photographs coffee --data flat.npy", "--photographs goes with --data photos"),
        ("train --data=", "data must be named"),
        ("train --batch-size 1000000000", "out of memory"),
        ("train --batch-size 100000000000000000", "out of memory"),
        ("train --codebook-size 100000000000000000000", "below 2^63"),
        ("train --data ~nobody_here/x", "there is no user whose folder ~nobody_here/x"),
        ("train --data cifar10:~nobody_here/x", "there is no user"),
        ("train --out ~nobody_here/x", "there is no user"),
        ("train --resume ~nobody_here/x", "there is no user"),
        ("train --held-out 0", "held_out must lie between 0 and 1, got 0"),
        ("train --crop 30", "crop must be a multiple of 4"),
        ("train --crop 9999", "too small for crops of 9999"),
        ("train --crop -4", "crop must be at least 4"),
        ("train --crop 0", "crop must be at least 4"),
        ("train --steps 0", "steps must be at least 1"),
        ("train --steps many", "'many' is not a valid integer"),
        ("train --batch-size -1", "batch_size must be at least 1"),
        ("train --codebook-size 0", "codebook_size must be at least 1"),
        ("train --codebook-size 99999999999999", "does not fit into memory"),
        ("train --lr 0", "lr must be above 0"),
        ("train --quantizer lloyd", "'lloyd' is not one of"),
        ("train --dtype int4", "'int4' is not one of"),
        ("train --device abacus", "device must be auto, cpu, cuda or cuda:N, got abacus"),
        ("train --device cuda:99", "device cuda:99 is not available"),
        ("train --device meta", "device must be auto"),
        ("train --out used", "used is not empty and is not overwritten"),
        ("train --out good.png", "good.png is a file"),
        ("train --out good.png/run", "cannot be made"),
        ("train --resume nowhere", "run folder not found: nowhere"),
        ("train --resume used", "used is not a run folder"),
        ("train --resume used --lr 1", "--lr cannot be given with it"),
        ("train --resume RUN", "step 1 of 1 already"),
        ("train extra", "unexpected extra argument"),
        ("train --stepz 3", "No such option"),
        ("trian", "No such command"),
        ("reconstruct nowhere.png --run RUN -o o.png", "image not found: nowhere.png"),
        ("reconstruct text.png --run RUN -o o.png", "text.png is not an image"),
        ("reconstruct empty --run RUN -o o.png", "empty is a folder"),
        ("reconstruct good.png --run used -o o.png", "used is not a run folder"),
        ("reconstruct good.png --run nowhere -o o.png", "run folder not found"),
        ("reconstruct good.png --run RUN -o good.png", "is read and cannot be written, too"),
        ("reconstruct good.png --run RUN -o good.png --overwrite", "is read and cannot be"),
        ("reconstruct good.png --run RUN -o text.png", "is not replaced without --overwrite"),
        ("reconstruct good.png --run RUN --out=", "must not be empty"),
        ("reconstruct good.png --run= -o o.png", "must not be empty"),
        ("reconstruct pipe.png --run RUN -o o.png", "pipe.png is a pipe, only regular files"),
        ("reconstruct good.png --run RUN -o pipe.png --overwrite", "is a device or a pipe"),
        ("encode pipe.png --run RUN -o o.npz", "pipe.png is a pipe, only regular files are read"),
        ("encode good.png --run RUN --out=", "must not be empty"),
        ("decode pipe.npz --run RUN -o back", "pipe.npz is a pipe, only regular files are read"),
        ("decode socket.npz --run RUN -o back", "socket.npz is a socket, only regular files"),
        ("decode pipe.npz --run RUN --out=", "must not be empty"),
        ("convert pipe.npz o.pt", "pipe.npz is a pipe, only regular files are read"),
        ("convert pipe.safetensors o.pt", "is a pipe, only regular files are read"),
        ("convert device.pt o.pt", "device.pt is a device, only regular files are read"),
        ("train --data pipe.npz", "pipe.npz is a pipe, only regular files are read"),
        ("train --data pipe.npy", "pipe.npy is a pipe, only regular files are read"),
        ("train --data pipes", "x.png is a pipe, only regular files are read"),
        ("train --data cifar10:pipes", "data_batch_1.bin is a pipe, only regular files are read"),
        ("train --out=", "must not be empty"),
        ("train --resume=", "must not be empty"),
        ("train --lr 1e300", "lr must be at most 3e+37, got 1e+300"),
        ("bench --json=", "must not be empty"),
        ("bench --threads 100000", "threads must be at most the number of cores"),
        ("reconstruct good.png --run RUN -o empty", "empty is a folder"),
        ("reconstruct good.png --run RUN -o o.xyz", "must end like an image file"),
        ("reconstruct good.png --run RUN -o o.mpg", "must end like an image file"),
        ("reconstruct good.png --run RUN -o no/o.png", "there is no folder no"),
        ("reconstruct good.png --run RUN", "Missing option '-o'"),
        ("reconstruct good.png -o o.png", "Missing option '--run'"),
    ],
)
def test_wrong_input_ends_with_one_sentence(here, run, capsys, arguments, sentence):
    before = snapshot(here), snapshot(run)
    with pytest.raises(SystemExit) as exit_:
        main(arguments.replace("RUN", str(run)).split())
    captured = capsys.readouterr()
    assert exit_.value.code in (1, 2)
    assert captured.out == ""
    assert captured.err.startswith("vqvae-fast: ")
    assert captured.err.count("\n") == 1
    assert len(captured.err) < 400
    assert sentence in captured.err
    assert before == (snapshot(here), snapshot(run))
    assert not (here / "runs").exists()


def test_truncated_checkpoint(here, run, tmp_path, capsys):
    copy = here / "copy"
    copy.mkdir()
    for path in run.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    content = (copy / "checkpoint.pt").read_bytes()
    (copy / "checkpoint.pt").write_bytes(content[: len(content) // 2])
    for arguments in (
        f"train --resume {copy} --steps 9",
        f"reconstruct good.png --run {copy} -o o.png",
    ):
        before = snapshot(here)
        with pytest.raises(SystemExit) as exit_:
            main(arguments.split())
        assert exit_.value.code == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "checkpoint.pt is truncated" in err
        assert snapshot(here) == before
