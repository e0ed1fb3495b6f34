import math

import pytest
import torch

from vqvae_fast.nn import code_counts, codebook_metrics, perplexity, usage


def test_counts():
    indices = torch.tensor([[0, 2], [2, 4], [-1, 2]])
    counts = code_counts(indices, 5)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [1, 0, 3, 0, 1]


def test_counts_of_nothing():
    assert code_counts(torch.empty(0, dtype=torch.int64), 3).tolist() == [0, 0, 0]


def test_usage():
    assert usage(torch.tensor([1, 0, 3, 0])).item() == 0.5
    assert usage(torch.tensor([0, 0])).item() == 0
    assert usage(torch.tensor([9])).item() == 1


@pytest.mark.parametrize("counts", [[4, 0, 0], [1, 1, 1], [5, 3, 0, 1], [0, 0]])
def test_perplexity_formula(counts):
    total = max(sum(counts), 1)
    expected = math.exp(-sum(n / total * math.log(n / total + 1e-10) for n in counts))
    assert perplexity(torch.tensor(counts)).item() == pytest.approx(expected, rel=1e-6)


def test_perplexity_is_exact_for_counts_that_float32_cannot_add_one_by_one():
    counts = torch.tensor([2**25 + 1, 2**25 + 1])
    assert perplexity(counts).item() == pytest.approx(2, rel=1e-6)


def test_codebook_metrics():
    metrics = codebook_metrics(torch.tensor([[0, 0, 2], [2, -1, -1]]), 4)
    assert metrics.usage == 0.5
    torch.testing.assert_close(metrics.perplexity, torch.tensor(2.0))
    assert metrics.dead_codes == 2
