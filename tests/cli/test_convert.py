"""convert: the quantizer of a checkpoint in a file of its own."""

import os
from pathlib import Path

import pytest
import torch

import vqvae_fast
from vqvae_fast.cli import main

CODES = torch.randn(8, 4)


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return exit_.value.code


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    state = {"vq_a.embedding.weight": CODES, "vq_b.embedding.weight": CODES + 1}
    torch.save({"state_dict": state}, tmp_path / "in.ckpt")
    return tmp_path / "in.ckpt"


def test_convert(checkpoint, tmp_path, capsys):
    out = tmp_path / "out.pt"
    assert call("convert", checkpoint, out, "--prefix", "vq_b") == 0
    assert "VectorQuantizer(n_e=8, e_dim=4)" in capsys.readouterr().out
    torch.load(out, weights_only=True)
    assert torch.equal(vqvae_fast.load_quantizer(out).codebook, CODES + 1)
    # What was converted can be converted again.
    assert call("convert", out, tmp_path / "again.pt") == 0
    assert torch.equal(vqvae_fast.load_quantizer(tmp_path / "again.pt").codebook, CODES + 1)


@pytest.fixture
def refused(tmp_path, capsys):
    """Calls convert, which must fail and change nothing; returns its one sentence."""

    def call_refused(*arguments: object) -> str:
        before = sorted(tmp_path.iterdir())
        capsys.readouterr()
        assert call("convert", *arguments) in (1, 2)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("vqvae-fast: ")
        assert captured.err.count("\n") == 1
        assert sorted(tmp_path.iterdir()) == before
        return captured.err

    return call_refused


class Code:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"vq.embedding.weight": CODES, "x": Code()}, "nothing in it was executed"),
        ({"vq.embedding.weight": torch.zeros(1).expand(10**12, 64)}, "256000000000000 bytes"),
        ({"vq.embedding.weight": CODES.to_sparse()}, "layout torch.sparse_coo"),
        ({"vq.embedding.weight": CODES * float("nan")}, "NaN or Inf in 8 of 8 vectors"),
        ({}, "no quantizer is known in an empty checkpoint"),
        ([CODES], "must hold a state dict, got list"),
    ],
)
def test_contents_that_are_no_quantizer(tmp_path, refused, content, sentence):
    torch.save(content, tmp_path / "in.pt")
    assert sentence in refused(tmp_path / "in.pt", tmp_path / "out.pt")


def test_places_that_cannot_be_written(checkpoint, tmp_path, refused):
    choose = ("--prefix", "vq_a", "--overwrite")
    os.mkfifo(tmp_path / "pipe")
    assert "is a device or a pipe" in refused(checkpoint, tmp_path / "pipe", *choose)
    assert "is a folder" in refused(checkpoint, tmp_path, *choose)
    assert "this is a folder" in refused(tmp_path, tmp_path / "out.pt", *choose)


def test_a_full_disk(checkpoint, tmp_path, refused):
    (tmp_path / "out.pt").write_text("mine")
    resource = pytest.importorskip("resource", reason="files cannot be limited here")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
    try:
        err = refused(checkpoint, tmp_path / "out.pt", "--prefix", "vq_a", "--overwrite")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "out.pt cannot be written; is the disk full?" in err
    assert (tmp_path / "out.pt").read_text() == "mine"


def test_errors_are_one_sentence(checkpoint, tmp_path, refused):
    out = tmp_path / "out.pt"
    assert "choose one by its prefix: vq_a, vq_b" in refused(checkpoint, out)
    assert "below 'vq_c'" in refused(checkpoint, out, "--prefix", "vq_c")
    assert "No such file" in refused(tmp_path / "nowhere.pt", out)
    assert "there is no folder" in refused(checkpoint, tmp_path / "no" / "out.pt")
    assert "cannot be written, too" in refused(checkpoint, checkpoint, "--overwrite")
    (tmp_path / "text.pt").write_text("text")
    assert "text.pt" in refused(tmp_path / "text.pt", out)
    assert not out.exists()
    out.write_text("mine")
    choose = ("--prefix", "vq_a")
    assert "not replaced without --overwrite" in refused(checkpoint, out, *choose)
    assert out.read_text() == "mine"
    assert call("convert", checkpoint, out, *choose, "--overwrite") == 0
    assert torch.equal(vqvae_fast.load_quantizer(out).codebook, CODES)
