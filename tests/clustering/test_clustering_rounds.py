"""KMeans from given codes: the rounds are Lloyd's, exactly."""

import pytest
import torch
from lloyd_in_float64 import blobs, gaussian, lloyd

from vqvae_fast import KMeans
from vqvae_fast.clustering import rows as rows_module


def from_given(x, codes, rounds, **arguments):
    return KMeans(len(codes), init=codes, max_iter=rounds, tol=0, **arguments)


@pytest.mark.parametrize("rounds", [1, 2, 7])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_codes_labels_and_inertia_are_those_of_float64(rounds, offset):
    x = gaussian(3000, 5) + offset
    codes, labels, inertia = lloyd(x, x[:40], rounds)
    found = from_given(x, x[:40], rounds).fit(x)
    assert found.n_iter_ == rounds
    assert torch.equal(found.labels_, labels)
    torch.testing.assert_close(found.cluster_centers_.double(), codes, rtol=3e-7, atol=1e-6)
    assert found.inertia_ == pytest.approx(inertia, rel=1e-5)


def test_pieces_are_added_up(monkeypatch):
    x = gaussian(3000, 5)
    whole = from_given(x, x[:40], 4).fit(x)
    monkeypatch.setattr(rows_module, "_NUMBERS", 500)
    monkeypatch.setattr(rows_module, "_ROWS_PER_CODE", 1)
    assert len(list(rows_module.Rows(x, None, "euclidean", 40))) == 30
    pieces = from_given(x, x[:40], 4).fit(x)
    assert torch.equal(pieces.labels_, whole.labels_)
    torch.testing.assert_close(pieces.cluster_centers_, whole.cluster_centers_)
    assert pieces.inertia_ == pytest.approx(whole.inertia_, rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_count_as_given(dtype):
    x = gaussian(2000, 6).to(dtype)
    codes, labels, inertia = lloyd(x, x[:30], 3)
    found = from_given(x, x[:30], 3).fit(x)
    assert found.cluster_centers_.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert torch.equal(found.labels_, labels)
    torch.testing.assert_close(found.cluster_centers_.double(), codes, rtol=1e-6, atol=1e-6)
    assert found.inertia_ == pytest.approx(inertia, rel=1e-6)


def test_float64_is_not_rounded():
    x = gaussian(500, 4).double() + 1e5
    codes, _, inertia = lloyd(x, x[:10], 5)
    found = from_given(x, x[:10], 5).fit(x)
    torch.testing.assert_close(found.cluster_centers_, codes, rtol=1e-14, atol=0)
    assert found.inertia_ == pytest.approx(inertia, rel=1e-9)


def test_weights_count_rows_so_often():
    x = gaussian(1500, 4)
    times = torch.randint(0, 4, (1500,), generator=torch.Generator().manual_seed(1))
    start = x[times > 0][:20]
    weighted = from_given(x, start, 5).fit(x, sample_weight=times)
    repeated = from_given(x, start, 5).fit(x.repeat_interleave(times, 0))
    codes, labels, inertia = lloyd(x, start, 5, times)
    torch.testing.assert_close(weighted.cluster_centers_, repeated.cluster_centers_)
    torch.testing.assert_close(weighted.cluster_centers_.double(), codes, rtol=1e-6, atol=1e-6)
    assert torch.equal(weighted.labels_, labels)
    assert weighted.inertia_ == pytest.approx(repeated.inertia_, rel=1e-7)
    assert weighted.inertia_ == pytest.approx(inertia, rel=1e-6)


def test_fractions_of_a_row_are_weights_too():
    x = gaussian(800, 3)
    ones = from_given(x, x[:10], 4).fit(x)
    tenths = from_given(x, x[:10], 4).fit(x, sample_weight=torch.full((800,), 0.1))
    torch.testing.assert_close(tenths.cluster_centers_, ones.cluster_centers_)
    assert tenths.inertia_ == pytest.approx(ones.inertia_ / 10, rel=1e-6)


@pytest.mark.parametrize("weight", [1e-190, 1e-46, 1e39, 1e190])
@pytest.mark.parametrize("init", ["k-means++", "random"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_only_the_ratios_of_weights_move_the_codes(weight, init, dtype):
    x = gaussian(800, 3).to(dtype)
    model = KMeans(10, init=init, random_state=0)
    ones = model.fit(x)
    codes, labels, inertia = ones.cluster_centers_, ones.labels_, ones.inertia_
    scaled = model.fit(x, sample_weight=[weight] * 800)
    assert torch.equal(scaled.labels_, labels)
    torch.testing.assert_close(scaled.cluster_centers_, codes)
    assert scaled.inertia_ == pytest.approx(inertia * weight, rel=1e-6, abs=0)
    assert scaled.score(x, sample_weight=[weight] * 800) == pytest.approx(
        -inertia * weight, rel=1e-6, abs=0
    )
    part = KMeans(10, init=x[:10]).partial_fit(x, sample_weight=[weight] * 800)
    assert float(part.counts_.sum()) == pytest.approx(800 * weight, rel=1e-9, abs=0)


def test_small_weights_beside_large_ones_move_codes_of_their_own():
    x = torch.tensor([[0.0], [1.0], [50.0], [54.0]])
    found = from_given(x, x[[0, 2]], 2).fit(x, sample_weight=[1, 1, 1e-46, 3e-46])
    assert found.cluster_centers_[:, 0].tolist() == [0.5, 53.0]


def test_the_rounds_end_when_nothing_moves():
    x = blobs(8, 50, 4)
    start = torch.stack([x[torch.cdist(x, x[:1])[:, 0].argsort()[n * 50 + 3]] for n in range(8)])
    found = from_given(x, start, 100).fit(x)
    codes, labels, inertia = lloyd(x, start, found.n_iter_)
    again, *_ = lloyd(x, start, found.n_iter_ - 1)
    before, *_ = lloyd(x, start, found.n_iter_ - 2)
    assert torch.equal(codes, again)
    assert not torch.equal(before, again)
    assert torch.equal(found.labels_, labels)
    assert found.inertia_ == pytest.approx(inertia, rel=1e-6)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_tolerance_is_a_share_of_the_mean_variance(metric, offset):
    x = gaussian(2000, 3) + offset
    rows = torch.nn.functional.normalize(x.double(), dim=1) if metric == "cosine" else x.double()
    start = x[:15]

    def movement(rounds):
        arguments = {"metric": metric, "tol": 0, "init": start}
        before = KMeans(15, max_iter=rounds, **arguments).fit(x.double())
        after = KMeans(15, max_iter=rounds + 1, **arguments).fit(x.double())
        return float((after.cluster_centers_ - before.cluster_centers_).square().sum())

    # The fifth round moves the codes by movement(4), which is less than in the rounds before.
    share = movement(4) / float(rows.var(0, correction=0).mean())
    arguments = {"metric": metric, "init": start}
    assert KMeans(15, tol=share * 1.01, **arguments).fit(x).n_iter_ == 5
    assert KMeans(15, tol=share * 0.99, **arguments).fit(x).n_iter_ > 5


def test_cosine_is_k_means_of_directions():
    x = gaussian(2000, 6) * torch.logspace(-3, 3, 2000)[:, None]
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    codes = unit[:20].clone()
    for _ in range(4):
        labels = (unit @ codes.T).argmax(1)
        sums = torch.zeros_like(codes).index_add(0, labels, unit)
        codes = torch.nn.functional.normalize(sums, dim=1)
    found = from_given(x, x[:20], 4, metric="cosine").fit(x)
    products = unit @ codes.T
    assert torch.equal(found.labels_, products.argmax(1))
    torch.testing.assert_close(found.cluster_centers_.double(), codes, rtol=0, atol=1e-6)
    assert found.inertia_ == pytest.approx(float((1 - products.amax(1)).sum()), rel=1e-6)


def test_an_empty_code_moves_to_the_farthest_row():
    x = torch.tensor([[0.0], [1.0], [2.0], [50.0], [100.0]])
    start = torch.tensor([[0.0], [1000.0], [1.0], [2000.0]])
    found = KMeans(4, init=start, max_iter=1, tol=0).fit(x)
    # 100 and 50 lie farthest from their code at 1, and no longer count for it.
    assert found.cluster_centers_[:, 0].tolist() == [0.0, 100.0, 1.5, 50.0]


def test_empty_codes_of_weighted_rows():
    x = torch.tensor([[0.0], [1.0], [3.0], [70.0], [100.0]])
    start = torch.tensor([[0.0], [1000.0]])
    found = KMeans(2, init=start, max_iter=1, tol=0).fit(x, sample_weight=[1, 1, 2, 2, 0])
    assert found.cluster_centers_[:, 0].tolist() == [1.75, 70.0]  # no weight: no farthest row


def test_a_code_keeps_its_only_row():
    x = torch.tensor([[0.0], [10.0]])
    found = KMeans(2, init=torch.tensor([[4.0], [900.0]]), max_iter=1, tol=0).fit(x)
    assert sorted(found.cluster_centers_[:, 0].tolist()) == [0.0, 10.0]
    alone = KMeans(3, init=torch.tensor([[1.0], [11.0], [900.0]]), tol=0).fit(
        torch.tensor([[0.0], [10.0], [10.0]])
    )
    assert alone.inertia_ == 0


def test_fewer_distinct_rows_than_codes_leave_codes_unused():
    x = torch.tensor([[0.0, 1.0], [5.0, 5.0]]).repeat(10, 1)
    for init in ("k-means++", "random"):
        found = KMeans(4, init=init, random_state=0).fit(x)
        assert found.inertia_ == 0
        assert len(found.labels_.unique()) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("copies", [50, 20_000])
def test_rounds_end_with_fewer_distinct_rows_than_codes(dtype, weighted, copies):
    x = gaussian(3, 4).to(dtype).repeat_interleave(copies, 0) + 0.1
    weights = torch.rand(len(x), generator=torch.Generator().manual_seed(1)) + 0.1
    for metric in ("euclidean", "cosine"):
        for seed in range(3):
            found = KMeans(6, metric=metric, random_state=seed, tol=0)
            found.fit(x, sample_weight=weights if weighted else None)
            assert found.n_iter_ <= 6
            assert len(found.labels_.unique()) == 3


def test_a_row_serves_an_empty_code_from_a_small_distance():
    x = torch.tensor([[100.0], [100.0001], [100.0003]])
    found = KMeans(3, init=torch.tensor([[100.0], [900.0], [800.0]]), tol=0).fit(x)
    assert sorted(found.cluster_centers_[:, 0].tolist()) == x[:, 0].tolist()


def test_thread_counts_and_repetitions_give_the_same_bits():
    x = gaussian(60_000, 8)
    weights = torch.rand(60_000, generator=torch.Generator().manual_seed(1))

    def fitted(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return KMeans(64, max_iter=3, random_state=3).fit(x, sample_weight=weights)
        finally:
            torch.set_num_threads(before)

    one, two, again = fitted(1), fitted(2), fitted(2)
    for other in (two, again):
        assert torch.equal(one.cluster_centers_, other.cluster_centers_)
        assert torch.equal(one.labels_, other.labels_)
        assert one.inertia_ == other.inertia_
