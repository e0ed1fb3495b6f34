"""Each backend, and the readable reference on the same device."""

import pytest
import torch
from oracle import check, quantize_gradients

from vqvae_fast.backends.reference import ops as reference
from vqvae_fast.dtypes import distance_dtype

# One row up to the size where codes are not split any more, dimensions off every block, both kinds
# of layout of the codes in the packed book.
SHAPES = [
    (1, 70_000, 64),
    (2, 9001, 8),
    (63, 16_385, 32),
    (129, 4097, 100),
    (1000, 1025, 256),
    (2049, 513, 300),
    (70_001, 131, 16),
]


@pytest.mark.parametrize(("rows", "codes", "dim"), SHAPES)
def test_indices_are_the_references(implementation, dtype, rows, codes, dim):
    """Where the nearest code is nearer than all others by more than the contract's tolerance."""
    z, codebook = torch.randn(rows, dim).to(dtype), torch.randn(codes, dim).to(dtype)
    indices, distances = implementation.nearest_code(z, codebook)
    wanted, wanted_distances = reference.nearest_code(z, codebook)
    torch.testing.assert_close(distances, wanted_distances, rtol=4e-7, atol=0)
    differ = (indices != wanted).nonzero()[:, 0]
    if len(differ):
        check((indices[differ], distances[differ]), z[differ], codebook)
        assert len(differ) < 1e-3 * rows + 2


@pytest.mark.parametrize(("rows", "codes", "dim"), SHAPES)
def test_sums_and_gradients_are_the_references(implementation, dtype, rows, codes, dim):
    z, codebook = torch.randn(rows, dim).to(dtype), torch.randn(codes, dim).to(dtype)
    indices = torch.randint(codes, (rows,))
    wide = distance_dtype(dtype)
    sums, counts = implementation.segment_sum(z, indices, codes)
    wanted = torch.zeros(codes, dim, dtype=torch.float64).index_add_(0, indices, z.double())
    magnitude = torch.zeros_like(wanted).index_add_(0, indices, z.double().abs())
    assert ((sums.double() - wanted).abs() <= 2 * torch.finfo(wide).eps * magnitude).all()
    assert torch.equal(counts, torch.bincount(indices, minlength=codes).to(wide))
    arguments = (torch.randn_like(z), torch.tensor(3.0, dtype=wide), z, codebook, indices, 0.3, 0.7)
    got = implementation.quantize_backward(*arguments)
    grad, loss, *tensors = (t.double() if t.is_floating_point() else t for t in arguments[:5])
    expected = quantize_gradients(grad, loss, *tensors, 0.3, 0.7)
    for mine, theirs in zip(got, expected, strict=True):
        scale = theirs.abs().max().item()
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(mine.double(), theirs, rtol=2 * eps, atol=2 * eps * scale)
