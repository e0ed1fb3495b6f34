"""Finding the quantizer, refusing files, keeping what was found."""

import argparse
import os
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch

import vqvae_fast
from vqvae_fast.checkpoints import StoredQuantizer, read_quantizer

CODES = torch.randn(8, 4)


def test_several_quantizers_need_a_prefix():
    state = {f"{place}.embedding.weight": CODES + i for i, place in enumerate(("vq_a", "x.vq_b"))}
    with pytest.raises(ValueError, match=r"choose one by its prefix: vq_a, x\.vq_b$"):
        vqvae_fast.load_quantizer(state)
    for prefix in ("x.vq_b", "x.vq_b.", "x"):
        assert torch.equal(vqvae_fast.load_quantizer(state, prefix).codebook, CODES + 1)
    with pytest.raises(ValueError, match="no quantizer is known by the keys below 'y'"):
        vqvae_fast.load_quantizer(state, "y")


def test_a_prefix_chooses_a_part_of_a_larger_quantizer():
    layout = {
        "initted": torch.tensor(True), "cluster_size": torch.ones(1, 8),
        "embed_avg": CODES[None], "embed": CODES[None],
    }  # fmt: skip
    state = {f"layers.{i}._codebook.{name}": t for i in range(2) for name, t in layout.items()}
    assert read_quantizer(state).name == "ResidualVQ"
    part = read_quantizer(state, "layers.1")
    assert part.name == "VectorQuantize"
    assert part.state.keys() == {f"_codebook.{name}" for name in layout}


def test_all_below_a_prefix_must_be_the_quantizer():
    state = {
        "vq.embedding.weight": CODES,
        "vq.proj.weight": torch.zeros(1),
        "other": torch.zeros(1),
    }
    for prefix in (None, "vq"):
        with pytest.raises(ValueError, match=r"more than is known of its format: vq\.proj\.weight"):
            vqvae_fast.load_quantizer(state, prefix)
    state = {"m.vq.embedding.weight": CODES, "m.proj.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"more than the quantizer m\.vq\.: m\.proj\.weight"):
        vqvae_fast.load_quantizer(state, "m")
    assert vqvae_fast.load_quantizer(state).n_e == 8


def test_unknown_layouts_are_told_with_what_is_known():
    state = {f"conv.{i}.weight": torch.zeros(1) for i in range(50)}
    state["token.embedding.weight"] = CODES  # of a language model
    with pytest.raises(ValueError, match="Known are") as error:
        vqvae_fast.load_quantizer(state)
    message = str(error.value)
    for part in (
        "conv.0.weight",
        "(51 in all)",
        "EnCodec",
        "DAC",
        "Mimi",
        "LlamaGen",
        "rosinality",
    ):
        assert part in message
    assert "\n" not in message
    assert len(message) < 1000


@pytest.mark.parametrize("state", [{}, {"epoch": 3}, {"model": {}}])
def test_no_weights_at_all(state):
    with pytest.raises(ValueError, match="no quantizer is known"):
        vqvae_fast.load_quantizer(state)


def test_shapes_that_cannot_be():
    with pytest.raises(ValueError, match=r"embedding\.weight must be \[any, any\], got \[3\]"):
        vqvae_fast.load_quantizer({"vq.embedding.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match="do not fit VectorQuantizer"):
        vqvae_fast.load_quantizer({"vq.embedding.weight": CODES}, n_e=9)
    with pytest.raises(TypeError, match="bata"):
        vqvae_fast.load_quantizer({"vq.embedding.weight": CODES}, bata=0.5)


def test_half_precision_is_widened():
    half = vqvae_fast.load_quantizer({"vq.embedding.weight": CODES.bfloat16()})
    assert half.codebook.dtype == torch.float32
    assert torch.equal(half.codebook, CODES.bfloat16().float())


def test_files_with_harmless_values(tmp_path):
    content = {
        "model": {"vq.embedding.weight": CODES},
        "args": argparse.Namespace(lr=1e-4),
        "epoch": 3,
        "history": [0.5, None, "x"],
    }
    torch.save(content, tmp_path / "run.pt")
    assert torch.equal(vqvae_fast.load_quantizer(tmp_path / "run.pt").codebook, CODES)
    assert torch.equal(vqvae_fast.load_quantizer(str(tmp_path / "run.pt")).codebook, CODES)


class Malicious:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_a_malicious_pickle_is_refused(tmp_path):
    target = tmp_path / "executed"
    bad = tmp_path / "bad.pt"
    torch.save({"vq.embedding.weight": CODES, "extra": Malicious(target)}, bad)
    refusal = rf"{os.system.__module__}\.system\); nothing in it was executed"
    with pytest.raises(ValueError, match=refusal):
        vqvae_fast.load_quantizer(bad)
    assert not target.exists()
    torch.load(bad, weights_only=False)
    assert target.exists(), "the file would not have done anything"


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps({"model": 1}, 2), b"PK\3\4 cut"])
def test_files_of_other_kinds(tmp_path, content):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.pt"):
        vqvae_fast.load_quantizer(tmp_path / "file.pt")


def test_other_contents(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="must hold a state dict, got list"):
        vqvae_fast.load_quantizer(tmp_path / "list.pt")
    with pytest.raises(
        TypeError, match="a path, a state dict or a checkpoint, got VectorQuantizer"
    ):
        vqvae_fast.load_quantizer(vqvae_fast.VectorQuantizer(8, 4))
    with pytest.raises(FileNotFoundError):
        vqvae_fast.load_quantizer(tmp_path / "nowhere.pt")


def test_safetensors(tmp_path, monkeypatch):
    """With a stand-in for the package: it is no dependency of ours."""
    path = tmp_path / "model.safetensors"
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match="pip install safetensors"):
        vqvae_fast.load_quantizer(path)
    package, inner = types.ModuleType("safetensors"), types.ModuleType("safetensors.torch")
    package.SafetensorError = type("SafetensorError", (Exception,), {})
    inner.load_file = lambda asked: {"vq.embedding.weight": CODES} if asked == path else None
    monkeypatch.setitem(sys.modules, "safetensors", package)
    monkeypatch.setitem(sys.modules, "safetensors.torch", inner)
    assert torch.equal(vqvae_fast.load_quantizer(path).codebook, CODES)


def test_a_stored_quantizer_comes_back(tmp_path):
    stored = read_quantizer({"vq.embedding.weight": CODES}, beta=0.5)
    stored.save(tmp_path / "own.pt")
    again = vqvae_fast.load_quantizer(tmp_path / "own.pt")
    assert torch.equal(again.codebook, CODES)
    assert again.beta == 0.5
    assert vqvae_fast.load_quantizer(tmp_path / "own.pt", beta=0.1).beta == 0.1
    with pytest.raises(ValueError, match="holds one quantizer and no prefixes, got 'vq'"):
        vqvae_fast.load_quantizer(tmp_path / "own.pt", "vq")


def test_a_stored_quantizer_names_one_of_our_classes(tmp_path):
    StoredQuantizer("Popen", {"args": "true"}, {}).save(tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"must be one of VectorQuantizer, .*got 'Popen'"):
        vqvae_fast.load_quantizer(tmp_path / "bad.pt")
    torch.save({"format": "vqvae_fast quantizer 1", "class": "SimVQ"}, tmp_path / "cut.pt")
    with pytest.raises(ValueError, match="is damaged"):
        vqvae_fast.load_quantizer(tmp_path / "cut.pt")
