"""Finding the quantizer, and keeping what was found; test_refusals.py has what is not loaded."""

import argparse

import pytest
import torch

import vqvae_fast
from vqvae_fast.checkpoints import read_quantizer
from vqvae_fast.nn import SplitResidualVQ

CODES = torch.randn(8, 4)


def test_several_quantizers_need_a_prefix():
    state = {f"{place}.embedding.weight": CODES + i for i, place in enumerate(("vq_a", "x.vq_b"))}
    with pytest.raises(ValueError, match=r"choose one by its prefix: vq_a, x\.vq_b$"):
        vqvae_fast.load_quantizer(state)
    for prefix in ("x.vq_b", "x.vq_b.", "x"):
        assert torch.equal(vqvae_fast.load_quantizer(state, prefix).codebook, CODES + 1)
    with pytest.raises(
        ValueError, match="known below 'y', for nothing is there; the keys are: vq_a"
    ):
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


def test_safetensors(tmp_path):
    files = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    path = tmp_path / "model.safetensors"
    files.save_file({"vq.embedding.weight": CODES, "encoder.weight": CODES.bfloat16()}, path)
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


RVQ = {"dim": 6, "codebook_size": 8, "num_quantizers": 3}


@pytest.mark.parametrize(
    "ours",
    [
        vqvae_fast.VectorQuantizer(8, 6),
        vqvae_fast.VectorQuantizer(8, 6, learning="ema", kmeans_init=True),
        vqvae_fast.VectorQuantize(6, 8, codebook_dim=4),
        vqvae_fast.ResidualVQ(**RVQ, codebook_dim=4, project_per_stage=True),
        vqvae_fast.GroupedResidualVQ(**RVQ, groups=2),
        SplitResidualVQ(**RVQ, codebook_dim=4),
        SplitResidualVQ(**RVQ, codebook_dim=6, projections=False, kmeans_init=True),
        vqvae_fast.SimVQ(6, 8),
        vqvae_fast.ResidualSimVQ(**RVQ),
    ],
    ids=lambda ours: type(ours).__name__,
)
@pytest.mark.parametrize("prefix", ["", "model.quantizer."])
def test_state_dicts_of_ours(ours, prefix):
    state = {prefix + name: tensor for name, tensor in ours.state_dict().items()}
    again = vqvae_fast.load_quantizer(state)
    assert type(again) is type(ours)
    assert list(again.state_dict()) == list(ours.state_dict())
    for name, tensor in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
