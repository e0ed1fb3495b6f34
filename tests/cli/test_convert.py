"""convert: the quantizer of a checkpoint in a file of its own."""

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


def test_errors_are_one_sentence(checkpoint, tmp_path, capsys):
    def refused(*arguments: object) -> str:
        capsys.readouterr()
        assert call("convert", *arguments) in (1, 2)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("vqvae-fast: ")
        assert captured.err.count("\n") == 1
        return captured.err

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
