"""partial_fit: each code is the mean of all rows that have chosen it so far."""

import pytest
import torch
from lloyd_in_float64 import gaussian

from vqvae_fast import KMeans


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_the_formula(metric, weighted):
    x = gaussian(1200, 4)
    unit = torch.nn.functional.normalize(x.double(), dim=1) if metric == "cosine" else x.double()
    weights = torch.rand(1200, generator=torch.Generator().manual_seed(1)).double()
    weights = weights if weighted else torch.ones_like(weights)
    codes = unit[:10].clone()
    means, counts = torch.zeros(10, 4).double(), torch.zeros(10).double()
    model = KMeans(10, metric=metric, init=x[:10])
    for part in torch.arange(1200).split(200):
        labels = torch.cdist(unit[part], codes).argmin(1)
        inertia = (torch.cdist(unit[part], codes).amin(1).square() * weights[part]).sum()
        for code in range(10):
            w = weights[part][labels == code]
            s = (w[:, None] * unit[part][labels == code]).sum(0)
            means[code] = (counts[code] * means[code] + s) / (counts[code] + w.sum())
            counts[code] += w.sum()
        codes = torch.nn.functional.normalize(means, dim=1) if metric == "cosine" else means.clone()
        model.partial_fit(x[part], sample_weight=weights[part] if weighted else None)
        assert torch.equal(model.labels_, labels)
        half = 0.5 if metric == "cosine" else 1.0
        assert model.inertia_ == pytest.approx(float(inertia) * half, rel=1e-5)
    assert model.n_iter_ == 6
    torch.testing.assert_close(model.cluster_centers_.double(), codes, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.counts_, counts, rtol=1e-6, atol=0)


def test_a_code_that_no_row_has_chosen_moves():
    start = torch.tensor([[0.0], [900.0]])
    model = KMeans(2, init=start).partial_fit(torch.tensor([[1.0], [2.0], [9.0]]))
    assert model.cluster_centers_[:, 0].tolist() == [1.5, 9.0]
    assert model.counts_.tolist() == [2.0, 1.0]
    model.partial_fit(torch.tensor([[3.0]]))  # a batch may be smaller than K, and miss a code
    assert model.cluster_centers_[:, 0].tolist() == [2.0, 9.0]


def test_the_first_batch_gives_the_start():
    x = gaussian(400, 3)
    whole = KMeans(8, random_state=0, max_iter=1).fit(x)
    part = KMeans(8, random_state=0).partial_fit(x)
    torch.testing.assert_close(part.cluster_centers_, whole.cluster_centers_)
    with pytest.raises(ValueError, match="n_samples=5 < n_clusters=8"):
        KMeans(8).partial_fit(x[:5])
    with pytest.raises(ValueError, match="X has 2 features"):
        part.partial_fit(x[:, :2])


def test_fit_starts_anew():
    x = gaussian(400, 3)
    model = KMeans(8, random_state=0).partial_fit(x + 5).fit(x)
    assert torch.equal(model.cluster_centers_, KMeans(8, random_state=0).fit(x).cluster_centers_)
    assert not hasattr(model, "counts_")


def test_a_failed_batch_changes_nothing():
    x = gaussian(100, 3)
    model = KMeans(8, random_state=0).partial_fit(x)
    before = model.cluster_centers_.clone(), model.counts_.clone()
    with pytest.raises(ValueError, match="NaN"):
        model.partial_fit(x * torch.nan)
    assert torch.equal(model.cluster_centers_, before[0])
    assert torch.equal(model.counts_, before[1])
