"""Padding: vectors of VectorQuantize that do not count."""

import pytest
import torch
from vector_quantizers import GRADIENT, MASK, quantizer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"heads": 2, "codebook_dim": 4},
        {"heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True},
        {"codebook_dim": 3},
        {"codebook_dim": 3, "heads": 2},
        {"use_cosine_sim": True},
        GRADIENT,
        {"commitment_use_cross_entropy_loss": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("channel_last", [True, False])
@pytest.mark.parametrize("by_length", [True, False])
def test_masked_vectors_do_not_count(options, channel_last, by_length):
    """As if the others were all there is: loss, codes and what they learn."""
    options = options | {"kmeans_init": True, "threshold_ema_dead_code": 0.01}
    masked = quantizer(**options, channel_last=channel_last)
    alone = quantizer(**options)
    alone.load_state_dict(masked.state_dict())
    for module in (masked, alone):  # codes to begin with
        module.codebook = torch.randn(module.codebook.shape)
        module.load_state_dict(masked.state_dict())
    x = torch.randn(2, 12, 8)
    x[~MASK] = torch.nan
    given = x if channel_last else x.transpose(1, 2)
    how = {"lens": torch.tensor([5, 9])} if by_length else {"mask": MASK}
    quantized, indices, loss = masked(given, **how)
    expected, codes, only_loss = alone(x[MASK][None])
    quantized = quantized if channel_last else quantized.transpose(1, 2)
    torch.testing.assert_close(quantized[MASK], expected[0])
    assert not quantized[~MASK].any()
    assert torch.equal(indices[MASK], codes[0])
    assert (indices[~MASK] == -1).all()
    torch.testing.assert_close(loss, only_loss)
    for key, value in alone.state_dict().items():
        torch.testing.assert_close(masked.state_dict()[key], value)


def test_k_means_of_masked_vectors():
    module = quantizer(codebook_size=4, kmeans_init=True)
    x = torch.randn(2, 12, 8)
    x[~MASK] = 100.0
    module(x, mask=MASK)
    assert module.codebook.abs().max() < 10


def test_masks_of_feature_maps():
    module = quantizer(accept_image_fmap=True).eval()
    x, mask = torch.randn(2, 8, 3, 4), torch.rand(2, 3, 4) > 0.5
    quantized, indices, _ = module(x, mask=mask)
    assert torch.equal(indices == -1, ~mask)
    assert torch.equal(quantized.movedim(1, -1)[mask], module.codebook[indices[mask]])
