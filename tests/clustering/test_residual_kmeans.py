"""residual_kmeans: the books of residual quantization."""

import numpy as np
import pytest
import torch
from lloyd_in_float64 import gaussian, lloyd

from vqvae_fast import KMeans, residual_kmeans, residual_nearest_code


def test_each_stage_clusters_what_the_last_has_left():
    x = gaussian(1500, 6)
    found = residual_kmeans(x, 3, 16, random_state=0, max_iter=5, tol=0)
    assert found.books.shape == (3, 16, 6)
    codes, quantized = residual_nearest_code(x, found.books)
    assert torch.equal(found.codes, codes)
    left = x.double()
    for stage in range(3):
        first = KMeans(16, random_state=stage, max_iter=5, tol=0).fit(left.float())
        torch.testing.assert_close(found.books[stage], first.cluster_centers_)
        _, _, inertia = lloyd(left, found.books[stage], 0)
        assert found.inertia[stage] == pytest.approx(inertia, rel=1e-5)
        left = left - found.books[stage].double()[codes[:, stage]]
    assert float((x - quantized).square().sum()) == pytest.approx(found.inertia[-1], rel=1e-5)


def test_a_beam_finds_better_codes():
    x = gaussian(1200, 6)
    greedy = residual_kmeans(x, 4, 8, random_state=0)
    beam = residual_kmeans(x, 4, 8, beam=5, random_state=0)
    taken = sum(beam.books[stage][beam.codes[:, stage]] for stage in range(4))
    assert float((x - taken).square().sum()) == pytest.approx(beam.inertia[-1], rel=1e-5)
    assert beam.inertia[-1] < 0.97 * greedy.inertia[-1]
    assert beam.inertia == sorted(beam.inertia, reverse=True)


def test_a_beam_as_wide_as_all_ways_is_exact():
    x = gaussian(300, 3)
    found = residual_kmeans(x, 2, 4, beam=16, random_state=1)
    ways = (found.books[0][:, None] + found.books[1]).flatten(0, 1)
    best = torch.cdist(x.double(), ways.double()).argmin(1)
    assert torch.equal(found.codes[:, 0] * 4 + found.codes[:, 1], best)


def test_batches_and_arrays():
    x = gaussian(1500, 5)
    whole = residual_kmeans(x, 2, 10, random_state=0)
    streamed = residual_kmeans(list(x.split(400)), 2, 10, random_state=0)
    assert streamed.codes is None
    assert streamed.inertia[-1] == pytest.approx(whole.inertia[-1], rel=0.05)
    array = residual_kmeans(x.numpy(), 2, 10, random_state=0)
    assert np.array_equal(array.books, whole.books.numpy())
    assert np.array_equal(array.codes, whole.codes.numpy())
    narrow = residual_kmeans(x.bfloat16(), 2, 10, random_state=0)
    assert narrow.books.dtype == torch.float32


def test_seeds():
    x = gaussian(300, 3)
    torch.manual_seed(0)
    one = residual_kmeans(x, 2, 5)
    torch.manual_seed(0)
    assert torch.equal(residual_kmeans(x, 2, 5).books, one.books)
    assert not torch.equal(residual_kmeans(x, 2, 5).books, one.books)
    largest = residual_kmeans(x, 2, 5, random_state=2**63 - 1)
    assert torch.equal(largest.books[0], KMeans(5, random_state=2**63 - 1).fit(x).cluster_centers_)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_stages": 0}, ValueError, "n_stages must be at least 1, got 0"),
        ({"random_state": 1.5}, TypeError, "random_state must be an integer .* got 1.5"),
        ({"random_state": "a"}, TypeError, "random_state must be an integer .* got 'a'"),
        ({"random_state": 2**63}, ValueError, "random_state .* got 9223372036854775808"),
        ({"random_state": -1}, ValueError, "random_state .* got -1"),
        ({"beam": 0}, ValueError, "beam must be at least 1, got 0"),
        ({"metric": "cosine"}, TypeError, "is Euclidean.*got metric"),
        ({"init": torch.zeros(5, 3)}, TypeError, "got codes to start from"),
        ({"rounds": 3}, TypeError, "rounds"),
        ({"n_clusters": 21}, ValueError, "n_samples=20 < n_clusters=21"),
        ({"X": [gaussian(20, 3)], "beam": 2}, ValueError, "X must be a matrix .* beam=2"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    given = {"X": gaussian(20, 3), "n_stages": 2, "n_clusters": 5, **arguments}
    with pytest.raises(error, match=message):
        residual_kmeans(given.pop("X"), given.pop("n_stages"), given.pop("n_clusters"), **given)
