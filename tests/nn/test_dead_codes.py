import pytest
import torch

from vqvae_fast.nn import CodeMovingAverage, CodeUsage, VectorQuantizer, replace_dead_codes
from vqvae_fast.nn.codebook.sampling import stratified_positions, take_rows


@pytest.mark.parametrize("averages", ["usage", "moving"])
def test_only_dead_codes_move_and_to_distinct_vectors(averages):
    codebook = torch.full((6, 3), -100.0)
    ema = CodeUsage(6, 0.9) if averages == "usage" else CodeMovingAverage(codebook, 0.9, 1e-5)
    size = torch.tensor([1.0, 0.1, 0.49, 0.5, 7.0, 0.0])
    ema.cluster_size.copy_(size)
    z = torch.randn(2, 3, 5, 5).movedim(1, -1)
    replace_dead_codes(z, codebook, ema, 0.5)
    dead = size < 0.5
    assert (codebook[~dead] == -100).all()
    rows = z.reshape(-1, 3)
    origin = (codebook[dead][:, None] == rows[None]).all(-1).nonzero()
    assert origin[:, 0].tolist() == [0, 1, 2]
    assert len(origin[:, 1].unique()) == 3
    torch.testing.assert_close(ema.cluster_size, torch.where(dead, 0.5, size))
    if isinstance(ema, CodeMovingAverage):
        torch.testing.assert_close(ema.embed_avg[dead], codebook[dead] * 0.5)
        assert (ema.embed_avg[~dead] == -100).all()


def test_more_dead_codes_than_vectors():
    codebook = torch.zeros(50, 2)
    z = torch.randn(7, 2)
    replace_dead_codes(z, codebook, CodeUsage(50, 0.9), 2.0)
    used = (codebook[:, None] == z[None]).all(-1)
    assert used.any(1).all()
    assert used.any(0).all()


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_dead_codebook_recovers(learning):
    """All codes but one far from the data: nothing chooses them, and they come back."""
    quantizer = VectorQuantizer(64, 4, learning=learning, dead_code_threshold=0.5)
    away = torch.full((64, 4), 1e3) + torch.randn(64, 4)
    away[0] = 0
    quantizer.set_codebook(away)
    z = torch.randn(4, 4, 8, 8)
    with torch.no_grad():
        assert quantizer(z)[4].unique().tolist() == [0]
        for _ in range(100):
            quantizer(z)
    assert len(quantizer(z)[4].unique()) >= 60
    assert quantizer.codebook.abs().max() < 10


def test_without_threshold_it_stays_dead():
    quantizer = VectorQuantizer(64, 4, learning="ema")
    away = torch.full((64, 4), 1e3)
    away[0] = 0
    quantizer.set_codebook(away)
    z = torch.randn(4, 4, 8, 8)
    for _ in range(100):
        quantizer(z)
    assert quantizer(z)[4].unique().tolist() == [0]


def test_replacement_is_used_at_once_and_has_gradient():
    quantizer = VectorQuantizer(4, 2, dead_code_threshold=0.5)
    quantizer.set_codebook(torch.full((4, 2), 50.0), cluster_size=0.0)
    z = torch.randn(1, 2, 4, 4)
    loss, _, _, _, indices = quantizer(z)
    assert len(indices.unique()) == 4
    loss.backward()
    assert quantizer.codebook.grad.any()


def test_two_forwards_before_backward():
    """A later replacement must not touch the codes that an earlier backward pass needs."""
    quantizer = VectorQuantizer(4, 2, beta=1.0, dead_code_threshold=0.5)
    z = torch.randn(1, 2, 4, 4, requires_grad=True)
    loss, z_q, *_ = quantizer(z)
    kept = z_q.detach().clone()
    quantizer.ema.cluster_size.zero_()
    quantizer(torch.randn(1, 2, 4, 4))
    loss.backward()
    torch.testing.assert_close(z.grad, 2 * (z.detach() - kept) / z.numel())


def test_draws_are_repeatable():
    z = torch.randn(3, 2, 4, 4)
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        quantizer = VectorQuantizer(8, 2, learning="ema", dead_code_threshold=1.0)
        for _ in range(3):
            quantizer(z)
        results.append(quantizer.codebook.clone())
    assert torch.equal(*results)


def test_positions_are_distinct_and_uniform():
    total, draws = 100, 7
    rank, seen = torch.arange(draws), torch.zeros(total)
    for _ in range(3000):
        positions = stratified_positions(rank, torch.tensor(draws), total)
        assert len(positions.unique()) == draws
        seen[positions] += 1
    share = seen / seen.sum()
    # Strata of 14 and 15 positions; 210 draws each, so 4 standard deviations are 28 %.
    assert share.min() > 0.68 / total
    assert share.max() < 1.34 / total


def test_take_rows_of_any_layout():
    z = torch.randn(2, 3, 4, 5)
    positions = torch.tensor([0, 39, 17, 17])
    rows = take_rows(z.movedim(1, -1), positions)
    assert torch.equal(rows, z.movedim(1, -1).reshape(-1, 3)[positions])
