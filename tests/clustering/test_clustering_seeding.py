"""Where KMeans starts: draws by distance, merging, random rows, samples, restarts."""

import pytest
import torch
from lloyd_in_float64 import blobs, gaussian
from sklearn.cluster import KMeans as ScikitLearn

from vqvae_fast import KMeans
from vqvae_fast.clustering import seeding
from vqvae_fast.clustering.merging import merged
from vqvae_fast.clustering.rows import Rows
from vqvae_fast.clustering.sample import sample
from vqvae_fast.clustering.seeding import drawn_by_distance, random_rows


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("block", [1, 16])
def test_draws_have_the_distribution_of_k_means_plus_plus(metric, block, monkeypatch):
    """The third draw, given the first two, against the formula's probabilities."""
    monkeypatch.setattr(seeding, "_BLOCK", block)
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-2.0, 0.3], [1.0, -1.5], [3.0, 3.1]])
    weights = torch.tensor([1.0, 2.0, 1.0, 3.0, 0.5], dtype=torch.float64)
    unit = torch.nn.functional.normalize(x, dim=1) if metric == "cosine" else x
    table = torch.cdist(unit.double(), unit.double()).square()
    expected = torch.zeros(5, 5, 5, dtype=torch.float64)
    for a in range(5):
        second = weights * table[a] / (weights * table[a]).sum()
        for b in range(5):
            if a != b:
                third = weights * torch.minimum(table[a], table[b])
                expected[a, b] = weights[a] / weights.sum() * second[b] * third / third.sum()
    data, g, trials = Rows(x, weights, metric, 3), generator(), 6000
    counts = torch.zeros(5, 5, 5, dtype=torch.float64)
    for _ in range(trials):
        codes = drawn_by_distance(data, 3, g)
        a, b, c = torch.cdist(codes, unit).argmin(1).tolist()
        counts[a, b, c] += 1
    likely = expected * trials > 5
    chi = (counts - expected * trials)[likely].square() / (expected * trials)[likely]
    freedom = int(likely.sum())
    assert float(chi.sum()) < freedom + 4 * (2 * freedom) ** 0.5
    assert counts[expected == 0].sum() == 0


def test_a_draw_is_never_a_row_without_weight():
    x = gaussian(50, 2)
    weights = torch.zeros(50, dtype=torch.float64)
    weights[[3, 17, 20, 41]] = 1
    kept = x[weights > 0]
    for draw in (drawn_by_distance, random_rows):
        codes = draw(Rows(x, weights, "euclidean", 4), 4, generator())
        assert torch.equal(codes.sort(0).values, kept.sort(0).values)


def test_random_rows_are_distinct_and_drawn_by_weight():
    x = torch.arange(6.0)[:, None]
    weights = torch.tensor([1, 1, 1, 1, 4, 4], dtype=torch.float64)
    g, trials = generator(), 3000
    data = Rows(x, weights, "euclidean", 2)
    first, pairs = torch.zeros(6), 0
    for _ in range(trials):
        codes = random_rows(data, 2, g)[:, 0].long()
        first[codes[0]] += 1
        pairs += codes[0] == codes[1]
    assert pairs == 0
    assert float((first / trials - weights / 12).abs().max()) < 0.03


def test_merging_keeps_one_code_for_each_cluster():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], dtype=torch.float64)
    means = centres.repeat(5, 1) + 0.1 * gaussian(15, 2).double()
    weights = torch.arange(1.0, 16, dtype=torch.float64)
    weights[4] = 0  # a cluster without rows
    sums = means * weights[:, None]
    codes = merged(means, sums, weights, 3, generator(), "euclidean")
    expected = torch.stack(
        [(means[n::3] * weights[n::3, None]).sum(0) / weights[n::3].sum() for n in range(3)]
    )
    order = torch.cdist(expected, codes).argmin(1)
    torch.testing.assert_close(codes[order], expected)


@pytest.mark.parametrize(
    ("x", "clusters"),
    [
        (blobs(60, 60, 8, spread=0.5), 60),
        (blobs(60, 60, 2, spread=0.1), 60),
        (gaussian(4000, 8), 60),
    ],
    ids=["clusters", "clusters in a plane", "no clusters"],
)
def test_inertia_is_that_of_scikit_learn_or_lower(x, clusters):
    ours = [KMeans(clusters, random_state=seed).fit(x).inertia_ for seed in range(5)]
    array = x.numpy()
    theirs = [ScikitLearn(clusters, random_state=s).fit(array).inertia_ for s in range(5)]
    assert sum(ours) < sum(theirs) * 1.005


def test_merging_is_what_finds_the_clusters():
    x = blobs(60, 60, 8, spread=0.5)
    data = Rows(x, None, "euclidean", 60)
    plain = [
        KMeans(60, init=drawn_by_distance(data, 60, generator(s))).fit(x).inertia_ for s in range(3)
    ]
    ours = [KMeans(60, random_state=s).fit(x).inertia_ for s in range(3)]
    assert sum(ours) < 0.8 * sum(plain)


def test_seeds_repeat():
    x = gaussian(900, 4)
    for init in ("k-means++", "random"):

        def codes(state, init=init):
            made = KMeans(12, init=init, max_iter=2, n_init=2, random_state=state)
            return made.fit(x).cluster_centers_

        assert torch.equal(codes(5), codes(5))
        assert not torch.equal(codes(5), codes(6))
        torch.manual_seed(1)
        one, next_one = codes(None), codes(None)
        torch.manual_seed(1)
        assert torch.equal(codes(None), one)
        assert not torch.equal(one, next_one)
        assert torch.equal(codes(generator(4)), codes(generator(4)))


def test_the_best_of_several_starts_is_kept():
    x = blobs(20, 30, 3, spread=0.3)
    arguments = {"init": "random", "random_state": 0}
    one = KMeans(20, n_init=1, **arguments).fit(x)
    ten = KMeans(20, **arguments).fit(x)  # "auto": ten random starts
    assert ten.inertia_ < one.inertia_
    assert torch.equal(ten.labels_, ten.predict(x))
    assert -ten.score(x) == pytest.approx(ten.inertia_, rel=1e-9)
    again = KMeans(20, n_init=10, **arguments).fit(x)
    assert torch.equal(again.cluster_centers_, ten.cluster_centers_)


def test_a_sample_is_uniform_and_keeps_its_weights():
    x = torch.arange(40.0)[:, None]
    data = Rows(x, x[:, 0].double() + 1, "euclidean", 1)
    counts, g = torch.zeros(40), generator()
    for _ in range(2000):
        drawn = sample(data, 10, g, synced=False)
        assert len(drawn) == 10
        assert torch.equal(drawn.values[:, 0].double() + 1, drawn.weights)
        counts[drawn.values[:, 0].long()] += 1
    assert counts.max() <= 2000  # no row twice in a sample
    assert float((counts / 500 - 1).abs().max()) < 0.2


def test_a_start_from_a_sample():
    x = blobs(10, 200, 3)
    found = KMeans(10, init_size=100, random_state=0).fit(x)
    assert found.inertia_ < 1.02 * KMeans(10, random_state=0).fit(x).inertia_


def test_very_many_codes_start_as_they_are_drawn(monkeypatch):
    monkeypatch.setattr(seeding, "_MOST_MERGED", 11)
    data = Rows(gaussian(300, 3), None, "euclidean", 12)
    drawn = drawn_by_distance(data, 12, generator())
    assert torch.equal(seeding.plus_plus(data, 12, generator()), drawn)
    drawn = drawn_by_distance(data, 11, generator())
    assert not torch.equal(seeding.plus_plus(data, 11, generator()), drawn)
