"""The codecs' own modules: ours from them, or from their state dict, computes what they do."""

import pytest
import torch
from codecs_of_others import CODECS, B, D, K, T, diffusers
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
