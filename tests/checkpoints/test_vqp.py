"""vector-quantize-pytorch's modules: ours from their state dict computes what they compute."""

import pytest
import torch
import vector_quantize_pytorch as vqp

import vqvae_fast
from vqvae_fast.checkpoints import read_quantizer

GRADIENT = {"learnable_codebook": True, "ema_update": False}
RVQ = {"dim": 6, "codebook_size": 16, "num_quantizers": 3}
CASES = {
    "plain": vqp.VectorQuantize(6, 16),
    "projected": vqp.VectorQuantize(6, 16, codebook_dim=4),
    "layernorm": vqp.VectorQuantize(6, 16, codebook_dim=4, layernorm_after_project_in=True),
    "learnable": vqp.VectorQuantize(6, 16, **GRADIENT),
    "cosine": vqp.VectorQuantize(6, 16, use_cosine_sim=True),
    "shared heads": vqp.VectorQuantize(6, 16, heads=2, codebook_dim=4),
    "own heads": vqp.VectorQuantize(
        6, 16, heads=3, codebook_dim=2, separate_codebook_per_head=True
    ),
    "residual": vqp.ResidualVQ(**RVQ),
    "residual projected": vqp.ResidualVQ(**RVQ, codebook_dim=4),
    "residual cosine": vqp.ResidualVQ(**RVQ, use_cosine_sim=True),
    "residual learnable": vqp.ResidualVQ(**RVQ, **GRADIENT),
    "residual shared": vqp.ResidualVQ(**RVQ, shared_codebook=True),
    "residual sizes": vqp.ResidualVQ(dim=6, codebook_size=(16, 8)),
    "residual neural": vqp.ResidualVQ(
        **RVQ, implicit_neural_codebook=True, mlp_kwargs={"dim_hidden": 5, "depth": 2}
    ),
    "one stage": vqp.ResidualVQ(dim=6, codebook_size=16, num_quantizers=1),
    "grouped": vqp.GroupedResidualVQ(groups=2, **RVQ),
    "grouped projected": vqp.GroupedResidualVQ(groups=2, codebook_dim=2, **RVQ),
    "sim": vqp.SimVQ(6, 16),
    "sim frozen dim": vqp.SimVQ(6, 16, frozen_codebook_dim=5),
    "residual sim": vqp.ResidualSimVQ(**RVQ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("prefix", ["", "model.quantizer."])
def test_same_results(case, prefix):
    theirs = CASES[case].eval()
    state = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    ours = vqvae_fast.load_quantizer(state)
    assert type(ours).__name__ == type(theirs).__name__
    assert ours.training
    ours.eval()
    x = torch.randn(2, 10, 6)
    with torch.no_grad():
        quantized, indices, _ = ours(x)
        expected = theirs(x)
    assert torch.equal(indices, expected[1])
    torch.testing.assert_close(quantized, expected[0])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


@pytest.mark.parametrize("case", CASES)
def test_stored_and_loaded_again(case, tmp_path):
    state = CASES[case].state_dict()
    read_quantizer(state).save(tmp_path / "own.pt")
    again = vqvae_fast.load_quantizer(tmp_path / "own.pt").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("case", "arguments"),
    [
        ("learnable", GRADIENT),
        ("cosine", {"use_cosine_sim": True}),
        ("residual shared", {"shared_codebook": True}),
        ("residual sizes", {"codebook_size": (16, 8)}),
        ("shared heads", {"heads": 2, "dim": 6, "codebook_dim": 4}),
        ("own heads", {"heads": 3, "separate_codebook_per_head": True}),
        ("grouped projected", {"groups": 2, "dim": 6, "codebook_dim": 2}),
        ("sim frozen dim", {"dim": 6, "frozen_codebook_dim": 5}),
    ],
)
def test_arguments_that_the_weights_tell(case, arguments):
    found = read_quantizer(CASES[case].state_dict()).arguments
    assert arguments.items() <= found.items()


def test_arguments_that_a_plain_codebook_does_not_tell():
    found = read_quantizer(CASES["plain"].state_dict()).arguments
    assert not found.keys() & {"use_cosine_sim", "learnable_codebook", "kmeans_init"}
    assert "shared_codebook" not in read_quantizer(CASES["residual"].state_dict()).arguments


def test_names_in_alphabetical_order_do_not_look_learnable():
    state = dict(sorted(CASES["learnable"].state_dict().items()))
    assert "learnable_codebook" not in read_quantizer(state).arguments
    assert read_quantizer(state, **GRADIENT).arguments["learnable_codebook"] is True


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_initted_of_all_versions(value, shape, dtype):
    state = vqp.VectorQuantize(6, 16, kmeans_init=True).state_dict()
    state["_codebook.initted"] = torch.full(shape, value, dtype=dtype)
    ours = vqvae_fast.load_quantizer(state)
    assert bool(ours._codebook.initted) is value
    assert ours._codebook.initted.shape == ()
    assert ("kmeans_init" in read_quantizer(state).arguments) is not value


def test_initted_is_one_flag():
    state = CASES["plain"].state_dict() | {"_codebook.initted": torch.ones(2)}
    with pytest.raises(ValueError, match=r"_codebook\.initted must be one flag, got \[2\]"):
        vqvae_fast.load_quantizer(state)


def test_codebooks_without_heads():
    state = CASES["plain"].state_dict()
    old = {
        name: tensor[0] if name.rsplit(".")[-1] != "initted" else tensor[None].float()
        for name, tensor in state.items()
    }
    ours = vqvae_fast.load_quantizer(old)
    for name, tensor in state.items():
        assert torch.equal(ours.state_dict()[name], tensor)


def test_affine_statistics_of_a_trained_module():
    theirs = vqp.VectorQuantize(6, 16, affine_param=True)
    theirs(torch.randn(4, 30, 6))
    theirs.eval()
    ours = vqvae_fast.load_quantizer(theirs.state_dict()).eval()
    x = torch.randn(2, 10, 6)
    assert torch.equal(ours(x)[1], theirs(x)[1])


def test_options_build_what_leaves_no_trace():
    theirs = vqp.VectorQuantize(8, 16, heads=2, codebook_dim=4).eval()
    ours = vqvae_fast.load_quantizer(theirs.state_dict(), heads=2).eval()
    x = torch.randn(2, 10, 8)
    assert torch.equal(ours(x)[1], theirs(x)[1])
    assert ours(x)[1].shape == (2, 10, 2)

    bridge = torch.nn.Linear(6, 6)
    state = vqp.VectorQuantize(6, 16, vq_bridge=bridge).state_dict()
    with pytest.raises(ValueError, match="vq_bridge"):
        vqvae_fast.load_quantizer(state)
    ours = vqvae_fast.load_quantizer(state, vq_bridge=torch.nn.Linear(6, 6))
    assert torch.equal(ours._codebook.vq_bridge.weight, bridge.weight)


def test_what_does_not_belong_raises():
    state = CASES["residual"].state_dict()
    with pytest.raises(ValueError, match=r"layers\.0\.extra"):
        vqvae_fast.load_quantizer({**state, "layers.0.extra": torch.zeros(1)})
    del state["layers.1._codebook.embed_avg"]
    with pytest.raises(ValueError, match=r"layers\.1\._codebook\.embed_avg"):
        vqvae_fast.load_quantizer(state)
    gap = {
        name: tensor
        for name, tensor in CASES["residual"].state_dict().items()
        if not name.startswith("layers.1.")
    }
    with pytest.raises(ValueError, match=r"without gaps, got \[0, 2\]"):
        vqvae_fast.load_quantizer(gap)
