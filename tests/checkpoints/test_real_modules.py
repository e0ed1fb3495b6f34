"""The codecs' own modules: ours from them, or from their state dict, computes what they do."""

import pytest
import torch
from codecs_of_others import CODECS, B, D, K, T, diffusers, mimi_hugging_face
from torch import nn

import vqvae_fast


@pytest.mark.parametrize("build", CODECS, ids=lambda build: build.__name__)
@pytest.mark.parametrize("live", [True, False])
@torch.no_grad()
def test_same_codes_and_outputs(build, live, monkeypatch):
    theirs = build(monkeypatch)
    model = nn.ModuleDict({"quantizer": theirs.module, "decoder": nn.Linear(2, 2)}).eval()
    ours = vqvae_fast.load_quantizer(model if live else model.state_dict())
    assert ours.training is not live
    ours.eval()
    x = torch.randn(B, theirs.channels, T) * 2
    expected = theirs.encode(x)
    output = theirs.decode(expected)
    quantized, indices, _ = ours(x.transpose(1, 2) if theirs.channels_last else x)
    decoded = ours.get_output_from_indices(expected)
    if theirs.channels_last:
        quantized, decoded = quantized.transpose(1, 2), decoded.transpose(1, 2)
    assert expected.shape == (B, T, ours.num_quantizers)
    assert len(expected.unique()) > K // 2
    assert torch.equal(indices, expected)
    torch.testing.assert_close(quantized, output)
    torch.testing.assert_close(decoded, output)


@torch.no_grad()
def test_where_codes_differ_ours_are_nearer(monkeypatch):
    """Their distances lose digits where vectors lie far from zero; float64 shows which is right."""
    theirs = mimi_hugging_face(monkeypatch).module
    book = theirs.semantic_residual_vector_quantizer.layers[0].codebook
    book.cluster_usage.fill_(1)
    book.embed_sum.copy_(torch.randn(K, D) * 0.02 + 5)
    ours = vqvae_fast.load_quantizer(theirs).rvq_first.vq.layers[0]
    x = torch.randn(5000, D) * 0.02 + 5
    right, got = book.encode(x), ours(x)[1]
    difference = x.double()[:, None] - book.embed.double()
    distances = difference.square().sum(-1)
    best = distances.amin(-1)
    other = right != got
    assert other.any()
    assert (distances.gather(1, got[:, None])[:, 0] <= best * (1 + 1e-6)).all()
    assert (distances.gather(1, right[:, None])[other] > best[other, None] * (1 + 1e-6)).any()


@torch.no_grad()
def test_state_dict_of_diffusers():
    theirs = diffusers(beta=0.25)
    state = {f"quantize.{name}": tensor for name, tensor in theirs.state_dict().items()}
    ours = vqvae_fast.load_quantizer(state, beta=0.25, legacy=True)
    x = torch.randn(B, D, 6, 5)
    output, expected_loss, (_, _, expected) = theirs(x)
    loss, z_q, _, _, indices = ours(x)
    assert torch.equal(indices[:, 0], expected)
    torch.testing.assert_close(z_q, output)
    torch.testing.assert_close(loss, expected_loss)
