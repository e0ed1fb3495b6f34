"""What tests/checkpoints/test_audio.py, which compares it with Mimi, does not see."""

import pytest
import torch

from vqvae_fast.nn import SplitResidualVQ

SIZES = {"dim": 6, "codebook_dim": 4, "codebook_size": 16, "num_quantizers": 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_semantic_quantizers": 4}, "below num_quantizers=4, got 4"),
        ({"num_semantic_quantizers": 0}, "at least 1 and below num_quantizers=4, got 0"),
        ({"projections": False}, "codebook_dim must be dim=6, got 4"),
    ],
)
def test_numbers_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        SplitResidualVQ(**{**SIZES, **changes})


def test_stages_of_both():
    split = SplitResidualVQ(**SIZES, num_semantic_quantizers=2).eval()
    quantized, indices, _ = split(torch.randn(2, 6, 5))
    assert (quantized.shape, indices.shape) == ((2, 6, 5), (2, 5, 4))
    torch.testing.assert_close(split.get_output_from_indices(indices), quantized)
    with pytest.raises(ValueError, match=r"at most 4\], got \[2, 5, 5\]"):
        split.get_output_from_indices(torch.zeros(2, 5, 5, dtype=torch.int64))


@pytest.mark.parametrize(
    "other",
    [
        torch.nn.Conv1d(4, 6, 1, bias=True),
        torch.nn.Conv1d(4, 6, 3, padding=1),
        torch.nn.Conv1d(4, 6, 1, groups=2),
    ],
    ids=["bias", "kernel", "groups"],
)
def test_another_convolution_does_what_it_says(other):
    split = SplitResidualVQ(**SIZES).eval()
    inner = split.rvq_first
    inner.output_proj = other
    x = torch.randn(2, 6, 5)
    quantized = inner.vq(inner.input_proj(x).transpose(1, 2))[0]
    torch.testing.assert_close(inner(x)[0], other(quantized.transpose(1, 2)))


def test_results_are_contiguous_and_errors_name_the_channels():
    split = SplitResidualVQ(**SIZES).eval()
    quantized, indices, _ = split(torch.randn(2, 6, 5))
    assert quantized.is_contiguous()
    assert split.get_output_from_indices(indices).is_contiguous()
    with pytest.raises(RuntimeError, match="to have 6 channels, but got 7"):
        split(torch.randn(2, 7, 5))
