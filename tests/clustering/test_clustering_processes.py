"""KMeans over the rows of several processes: one clustering, the same codes in all."""

import pytest
import torch
from lloyd_in_float64 import blobs, gaussian
from process_group import run_together

from vqvae_fast import KMeans

WORLD = 2
X = gaussian(1001, 4)
SHARES = (slice(0, 300), slice(300, None))  # the processes have different numbers of rows
WEIGHTS = torch.rand(1001, generator=torch.Generator().manual_seed(1))
CLUSTERS = blobs(12, 60, 3, spread=0.2)
FAR = torch.tensor([[0.0], [1.0], [2.0], [50.0], [100.0]])


def _result(model):
    return model.cluster_centers_, model.labels_, model.inertia_, model.n_iter_


def _work(rank, folder):
    mine = SHARES[rank]
    given = KMeans(20, init=X[:20], synced=True).fit(X[mine], sample_weight=WEIGHTS[mine])
    alone = KMeans(20, init=X[:20]).fit(X[:400])  # not synced: the processes do not meet
    torch.manual_seed(rank)  # random draws are those of the first process
    drawn = {
        init: KMeans(12, init=init, n_init=2, synced=True).fit(CLUSTERS[rank::WORLD])
        for init in ("k-means++", "random")
    }
    cosine = KMeans(12, metric="cosine", synced=True, random_state=0).fit(
        CLUSTERS[rank::WORLD].split(50)
    )
    far = KMeans(4, init=torch.tensor([[0.0], [1e3], [1.0], [2e3]]), max_iter=1, synced=True)
    far.fit(FAR[rank::WORLD])
    part = KMeans(20, init=X[:20], synced=True)
    for batch in range(3):
        part.partial_fit(X[mine][batch * 100 : batch * 100 + 100])
    found = {
        "given": _result(given),
        "alone": _result(alone),
        "far": far.cluster_centers_,
        "cosine": cosine.cluster_centers_,
        "part": (part.cluster_centers_, part.counts_),
        **{init: _result(model) for init, model in drawn.items()},
    }
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    run_together(_work, WORLD, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def test_all_rows_count(found):
    alone = KMeans(20, init=X[:20]).fit(X, sample_weight=WEIGHTS)
    for rank in range(WORLD):
        codes, labels, inertia, rounds = found[rank]["given"]
        assert torch.equal(codes, found[0]["given"][0])
        torch.testing.assert_close(codes, alone.cluster_centers_, rtol=1e-5, atol=1e-6)
        assert torch.equal(labels, alone.labels_[SHARES[rank]])
        assert inertia == pytest.approx(alone.inertia_, rel=1e-6)
        assert rounds == alone.n_iter_


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_all_processes_start_from_the_same_rows(found, init):
    best = min(KMeans(12, random_state=seed).fit(CLUSTERS).inertia_ for seed in range(5))
    for rank in range(WORLD):
        assert torch.equal(found[rank][init][0], found[0][init][0])
        assert found[rank][init][2] == found[0][init][2]
    assert found[0]["k-means++"][2] < 1.3 * best


def test_streams_of_unequal_lengths(found):
    assert torch.equal(found[0]["cosine"], found[1]["cosine"])
    whole = KMeans(12, metric="cosine", random_state=0).fit(CLUSTERS)
    synced = KMeans(12, metric="cosine", init=found[0]["cosine"], max_iter=1).fit(CLUSTERS)
    assert synced.inertia_ < 1.1 * whole.inertia_


def test_an_empty_code_moves_to_the_farthest_row_of_all(found):
    for rank in range(WORLD):
        assert found[rank]["far"][:, 0].tolist() == [0.0, 100.0, 1.5, 50.0]


def test_partial_fit_takes_the_batches_of_all(found):
    alone = KMeans(20, init=X[:20])
    for batch in range(3):
        rows = slice(batch * 100, batch * 100 + 100)
        alone.partial_fit(torch.cat([X[share][rows] for share in SHARES]))
    for rank in range(WORLD):
        codes, counts = found[rank]["part"]
        torch.testing.assert_close(codes, alone.cluster_centers_, rtol=1e-5, atol=1e-6)
        assert torch.equal(counts, alone.counts_)


def test_without_synced_each_process_is_on_its_own(found):
    alone = KMeans(20, init=X[:20]).fit(X[:400])
    for rank in range(WORLD):
        assert torch.equal(found[rank]["alone"][0], alone.cluster_centers_)
