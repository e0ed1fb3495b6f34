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
