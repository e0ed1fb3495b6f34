"""The segment sum: the tests of tests/ops, on the device, and indices that are no segment."""

import pytest
import torch
from test_segment_sum import *  # noqa: F403
from test_segment_sum import check

import vqvae_fast

# Of a CPU: threads, an op that may look at its indices, and an order of index_add_.
del test_thread_counts_agree  # noqa: F821
del test_an_index_that_is_no_segment  # noqa: F821
del test_float32_is_summed_in_float64  # noqa: F821


@pytest.mark.parametrize("bad", [4, 5, 2**40, 2**63 - 1])
def test_the_public_function_refuses_an_index_that_is_no_segment(cuda, bad):
    with pytest.raises(IndexError, match="must be below num_segments=4"):
        vqvae_fast.segment_sum(torch.ones(3, 2), torch.tensor([0, bad, 1]), 4)


@pytest.mark.parametrize("bad", [4, 2**40, 2**63 - 1])
def test_the_op_leaves_such_an_index_out_or_says_nan(cuda, served_by, bad):
    """It waits for nothing, so it cannot raise; other memory than its results stays as it is."""
    src, indices = torch.randn(300, 5), torch.randint(0, 4, (300,))
    indices[::7] = bad
    sums, counts = torch.ops.vqvae_fast.segment_sum(src, indices, 4)
    if served_by == "cuda":
        assert sums.isnan().all()
        assert counts.isnan().all()
    else:
        check((sums, counts), src, indices.masked_fill(indices == bad, -1), 4)


def test_float32_is_summed_in_float64_on_the_device():
    """Ones onto 2^25 and back: a sum in float32 would lose some of them in any order."""
    src = torch.cat([torch.tensor([2.0**25]), torch.ones(9999), torch.tensor([-(2.0**25)])])
    one_segment = torch.zeros(len(src), dtype=torch.int64)
    sums, _ = torch.ops.vqvae_fast.segment_sum(src[:, None], one_segment, 1)
    assert sums.item() == 9999


def test_many_rows_and_skewed_segments(dtype):
    src, indices = torch.randn(70_000, 33).to(dtype), torch.randint(-1, 3000, (70_000,))
    indices[1000:50_000] = 7
    sums, counts = torch.ops.vqvae_fast.segment_sum(src, indices, 3000)
    kept, rows = src[indices >= 0].double(), indices[indices >= 0]
    wanted = torch.zeros(3000, 33, dtype=torch.float64).index_add_(0, rows, kept)
    magnitude = torch.zeros_like(wanted).index_add_(0, rows, kept.abs())
    error = (sums.double() - wanted.to(sums.dtype).double()).abs()
    assert (error <= 1e-7 * wanted.abs() + 1e-11 * magnitude).all()
    assert torch.equal(counts, torch.bincount(rows, minlength=3000).to(counts.dtype))
