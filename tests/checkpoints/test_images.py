"""Codebooks of image models: taming and its heirs, VQ-VAE-2, the reference VQ-VAE, our own runs."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import vqvae_fast
from vqvae_fast.training import TrainConfig, train

K, D = 16, 4
REFERENCE = Path(__file__).parents[1] / "golden" / "reference_checkpoint.pth"


@pytest.fixture
def z() -> torch.Tensor:
    return torch.randn(2, D, 3, 5)


def nearest(z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    return torch.cdist(z.movedim(1, -1).reshape(-1, z.shape[1]), codes).argmin(-1)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "ema"])
@pytest.mark.parametrize("place", ["", "quantize.", "first_stage_model.quantize.", "module.vq."])
def test_taming_and_its_heirs(z, wrapper, place):
    codes = torch.randn(K, D)
    state = {f"{place}embedding.weight": codes}
    if place:
        state |= {"encoder.conv_in.weight": torch.zeros(3), "token.embedding.weight": codes[:5]}
    checkpoint = {wrapper: state, "epoch": 3} if wrapper else state
    ours = vqvae_fast.load_quantizer(checkpoint, beta=0.5, legacy=True)
    assert (ours.beta, ours.legacy) == (0.5, True)
    _, z_q, _, _, indices = ours(z)
    assert torch.equal(indices[:, 0], nearest(z, codes))
    torch.testing.assert_close(z_q.movedim(1, -1).reshape(-1, D), codes[indices[:, 0]])


def test_averaged_weights_go_first():
    ours, other = torch.randn(K, D), torch.randn(K, D)
    checkpoint = {
        "model": {"quantize.embedding.weight": other},
        "ema": {"quantize.embedding.weight": ours},
    }
    assert torch.equal(vqvae_fast.load_quantizer(checkpoint).codebook, ours)


@pytest.mark.parametrize("l2_norm", [None, True, False])
def test_llamagen_normalises(z, l2_norm):
    codes = torch.randn(K, D) * torch.rand(K, 1) * 3
    state = {"quantize.embedding.weight": codes, "quantize.codebook_used": torch.zeros(65536)}
    options = {} if l2_norm is None else {"l2_norm": l2_norm}
    _, z_q, _, _, indices = vqvae_fast.load_quantizer({"model": state}, **options)(z)
    if l2_norm is not False:
        codes = F.normalize(codes, dim=-1)
        assert torch.equal(indices[:, 0], nearest(F.normalize(z, dim=1), codes))
    assert torch.equal(indices[:, 0], nearest(z, codes))
    torch.testing.assert_close(z_q.movedim(1, -1).reshape(-1, D), codes[indices[:, 0]])


def test_taming_with_moving_averages():
    state = {
        "quantize.embedding.weight": torch.randn(K, D),
        "quantize.embedding.cluster_size": torch.rand(K),
        "quantize.embedding.embed_avg": torch.randn(K, D),
    }
    ours = vqvae_fast.load_quantizer(state)
    assert ours.learning == "ema"
    assert torch.equal(ours.ema.cluster_size, state["quantize.embedding.cluster_size"])
    assert torch.equal(ours.ema.embed_avg, state["quantize.embedding.embed_avg"])


def vqvae_2() -> dict[str, torch.Tensor]:
    state = {"quantize_conv_t.weight": torch.zeros(D, 8, 1, 1)}
    for level in "tb":
        state |= {
            f"quantize_{level}.embed": torch.randn(D, K),
            f"quantize_{level}.cluster_size": torch.rand(K) + 1,
            f"quantize_{level}.embed_avg": torch.randn(D, K),
        }
    return state


@pytest.mark.parametrize("level", ["quantize_t", "quantize_b"])
def test_vqvae_2(z, level):
    state = vqvae_2()
    ours = vqvae_fast.load_quantizer(state, level)
    codes = state[f"{level}.embed"].T
    _, z_q, _, _, indices = ours.eval()(z)
    assert torch.equal(indices[:, 0], nearest(z, codes))
    torch.testing.assert_close(z_q.movedim(1, -1).reshape(-1, D), codes[indices[:, 0]])
    assert torch.equal(ours.ema.embed_avg, state[f"{level}.embed_avg"].T)
    assert torch.equal(ours.ema.cluster_size, state[f"{level}.cluster_size"])
    assert ours.codebook.is_contiguous()


def test_vqvae_2_goes_on_training_as_it_did():
    state, z = vqvae_2(), torch.randn(2, D, 8, 8)
    ours = vqvae_fast.load_quantizer(state, "quantize_t")
    ours(z)
    rows = z.movedim(1, -1).reshape(-1, D)
    one_hot = F.one_hot(nearest(z, state["quantize_t.embed"].T), K).float()
    size = 0.99 * state["quantize_t.cluster_size"] + 0.01 * one_hot.sum(0)
    average = 0.99 * state["quantize_t.embed_avg"] + 0.01 * rows.T @ one_hot
    smoothed = (size + 1e-5) / (size.sum() + K * 1e-5) * size.sum()
    torch.testing.assert_close(ours.codebook.T, average / smoothed)


def test_reference_vqvae():
    whole = vqvae_fast.VQVAE.from_reference(REFERENCE).vector_quantization
    ours = vqvae_fast.load_quantizer(REFERENCE)
    assert torch.equal(ours.codebook, whole.codebook)
    assert (ours.beta, ours.legacy) == (whole.beta, True)
    z = torch.randn(2, ours.e_dim, 4, 4)
    assert torch.equal(ours(z)[0], whole(z)[0])


def test_a_run_of_ours(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((10, 16, 16, 3)))
    config = TrainConfig(
        data=str(tmp_path / "x.npy"), codebook_size=8, dim=4, batch_size=2, steps=2,
        device="cpu", out=str(tmp_path / "run"),
    )  # fmt: skip
    train(config)
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    ours = vqvae_fast.load_quantizer(tmp_path / "run" / "checkpoint.pt")
    model = vqvae_fast.VQVAE(**checkpoint["model_config"])
    model.load_state_dict(checkpoint["model"])
    theirs = model.vector_quantization
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    assert (ours.learning, ours.beta) == (theirs.learning, theirs.beta)
    assert ours.dead_code_threshold == theirs.dead_code_threshold
