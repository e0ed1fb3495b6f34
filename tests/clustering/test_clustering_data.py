"""What KMeans takes: arrays, tensors, iterables of batches; and what it refuses."""

import numpy as np
import pytest
import torch
from lloyd_in_float64 import blobs, gaussian
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from vqvae_fast import KMeans, residual_kmeans
from vqvae_fast.clustering import estimator


class Counted:
    """Batches that count how often they are read."""

    def __init__(self, batches):
        self.batches, self.readings = batches, 0

    def __iter__(self):
        self.readings += 1
        return iter(self.batches)


def test_arrays_in_arrays_out():
    x = gaussian(300, 4)
    of_tensor = KMeans(9, random_state=0).fit(x)
    of_array = KMeans(9, random_state=0).fit(x.numpy())
    for name in ("cluster_centers_", "labels_"):
        array = getattr(of_array, name)
        assert isinstance(array, np.ndarray)
        assert np.array_equal(array, getattr(of_tensor, name).numpy())
    assert of_array.labels_.dtype == np.int64
    assert isinstance(of_array.predict(x.numpy()), np.ndarray)
    assert isinstance(of_array.predict(x), torch.Tensor)
    assert isinstance(of_tensor.transform(x.numpy()), np.ndarray)
    assert of_array.inertia_ == of_tensor.inertia_


@pytest.mark.parametrize(
    "given",
    [
        lambda x: x.numpy()[::-1].copy()[::-1],
        lambda x: np.asfortranarray(x.numpy()),
        lambda x: x.tolist(),
        lambda x: x.T.contiguous().T,
        lambda x: x.clone().requires_grad_(),
    ],
    ids=["negative strides", "columns", "lists", "strided tensor", "a gradient"],
)
def test_layouts(given):
    x = gaussian(200, 3).round(decimals=3)
    expected = KMeans(5, init=x[:5]).fit(x)
    found = KMeans(5, init=x[:5]).fit(given(x))
    assert np.array_equal(np.asarray(found.labels_), expected.labels_.numpy())
    assert not getattr(found.cluster_centers_, "requires_grad", False)


def test_integers_count_as_float64():
    found = KMeans(2, random_state=0).fit(np.array([[0, 1], [0, 1], [9, 9]]))
    assert found.cluster_centers_.dtype == np.float64
    assert found.inertia_ == 0


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_transform_gives_the_distances(metric, monkeypatch):
    monkeypatch.setattr(estimator, "_LARGEST_TABLE", 100)  # many pieces
    x = gaussian(333, 5)
    model = KMeans(12, metric=metric, random_state=0).fit(x)
    table = model.transform(x)
    codes = model.cluster_centers_.double()
    if metric == "cosine":
        expected = 1 - torch.nn.functional.normalize(x.double(), dim=1) @ codes.T
    else:
        expected = (x.double()[:, None] - codes).norm(dim=2)
    torch.testing.assert_close(table.double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(model.fit_transform(x), table)
    assert torch.equal(table.argmin(1), model.labels_)
    inertia = table.amin(1).double().pow(1 if metric == "cosine" else 2).sum()
    assert model.inertia_ == pytest.approx(float(inertia), rel=1e-6)


def test_batches_are_read_once_a_round():
    x = gaussian(2000, 4)
    batches = Counted(x.split(300))
    given = KMeans(20, init=x[:20], max_iter=5, tol=0).fit(batches)
    assert batches.readings == 5 + 1  # the last one for the inertia
    whole = KMeans(20, init=x[:20], max_iter=5, tol=0).fit(x)
    torch.testing.assert_close(given.cluster_centers_, whole.cluster_centers_)
    assert given.inertia_ == pytest.approx(whole.inertia_, rel=1e-7)
    assert not hasattr(given, "labels_")
    assert torch.equal(given.predict(batches), whole.labels_)
    assert given.score(batches) == pytest.approx(-whole.inertia_, rel=1e-7)
    batches.readings = 0
    KMeans(20, max_iter=3, tol=0).fit(batches)
    assert batches.readings == 1 + 3 + 1  # the first one for the start


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_data_loader(metric):
    x = blobs(15, 80, 6, spread=0.1)
    loader = DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=100)
    streamed = KMeans(15, metric=metric, random_state=0).fit(loader)
    whole = KMeans(15, metric=metric, random_state=0).fit(x)
    assert streamed.inertia_ == pytest.approx(whole.inertia_, rel=0.02)
    assert torch.equal(streamed.fit_predict(loader), streamed.predict(x))


def test_arrays_and_16_bit_batches():
    x = gaussian(400, 3).half()
    arrays = KMeans(6, init=x[:6].float()).fit([b.numpy() for b in x.split(150)])
    tensors = KMeans(6, init=x[:6].float()).fit(list(x.split(150)))
    assert isinstance(arrays.cluster_centers_, np.ndarray)
    assert np.array_equal(arrays.cluster_centers_, tensors.cluster_centers_.numpy())
    whole = KMeans(6, init=x[:6]).fit(x)
    torch.testing.assert_close(tensors.cluster_centers_, whole.cluster_centers_)


def test_given_codes_become_directions_and_decide_the_dtype_of_batches():
    x = gaussian(400, 3)
    start = x[:6] * torch.tensor([1.0, 1e3, 1e-3, 5.0, 1.0, 30.0])[:, None]
    arguments = {"metric": "cosine", "max_iter": 1, "init": start}
    whole = KMeans(6, **arguments).fit(x)
    streamed = KMeans(6, **arguments).fit(list(x.double().split(150)))
    assert streamed.cluster_centers_.dtype == torch.float32
    torch.testing.assert_close(streamed.cluster_centers_, whole.cluster_centers_)
    assert torch.equal(streamed.predict(list(x.double().split(150))), whole.labels_)


def test_a_generator_is_refused_because_it_can_be_read_only_once():
    x = gaussian(100, 3)
    with pytest.raises(TypeError, match=r"read once a round.*got generator.*partial_fit"):
        KMeans(4).fit(batch for batch in x.split(10))


class ReadOnce(IterableDataset):
    """Batches whose further readings give some of them only."""

    def __init__(self, batches, left=0):
        self.batches, self.left, self.readings = batches, left, 0

    def __iter__(self):
        self.readings += 1
        return iter(self.batches if self.readings == 1 else self.batches[: self.left])


@pytest.mark.parametrize("init", ["k-means++", "random", "given"])
@pytest.mark.parametrize("left", [0, 2])
def test_every_reading_must_give_the_same_rows(init, left):
    x = gaussian(3000, 3)
    model = KMeans(4, init=x[:4] if init == "given" else init, random_state=0)
    message = f"the same rows at every reading: gave 3000, then {left * 100}"
    with pytest.raises(ValueError, match=message):
        model.fit(ReadOnce(x.split(100), left))
    with pytest.raises(ValueError, match=message):
        model.fit(DataLoader(ReadOnce(x.split(100), left), batch_size=None))
    with pytest.raises(ValueError, match=message):
        residual_kmeans(ReadOnce(x.split(100), left), 2, 4)
    assert not hasattr(model, "cluster_centers_")


def test_prediction_needs_rows():
    model = KMeans(4, random_state=0).fit(X)
    for call in (model.predict, model.score):
        with pytest.raises(ValueError, match="must have rows"):
            call(Counted([]))


def test_a_list_of_tuples():
    x = gaussian(300, 3)
    tuples = KMeans(4, init=x[:4]).fit([(batch, 0) for batch in x.split(100)])
    tensors = KMeans(4, init=x[:4]).fit(list(x.split(100)))
    assert torch.equal(tuples.cluster_centers_, tensors.cluster_centers_)
    labels = tuples.predict([[batch.numpy(), 0] for batch in x.split(100)])
    assert np.array_equal(labels, tensors.predict(x).numpy())


def test_verbose_prints_a_line_a_round(capsys):
    KMeans(4, max_iter=3, tol=0, verbose=True, random_state=0).fit(gaussian(500, 3))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["round 1", "round 2", "round 3"]
    assert "inertia" in lines[0]


X = gaussian(20, 3)


@pytest.mark.parametrize(
    ("arguments", "x", "error", "message"),
    [
        ({}, X[:3], ValueError, r"n_samples=3 < n_clusters=4"),
        ({}, [X[:3]], ValueError, r"n_samples=3 < n_clusters=4"),
        ({}, [], ValueError, r"\[n, D\], got \[0\]"),
        ({}, Counted([]), ValueError, "must have rows"),
        ({}, [X, X[:, :2]], ValueError, r"batches must be \[n, D=3\], got \[20, 2\]"),
        ({}, X[0], ValueError, r"X must be \[n, D\], got \[3\]"),
        ({}, X[:0], ValueError, "found 0 sample"),
        ({}, X[:, :0], ValueError, "0 feature"),
        ({}, X.long(), TypeError, r"float dtype, got torch.int64"),
        ({}, X.numpy() + 1j, ValueError, "Complex data not supported"),
        ({}, torch.cat([X, X[:1] * torch.nan]), ValueError, "NaN"),
        ({}, torch.cat([X, X[:1] * torch.inf]), ValueError, "infinity"),
        ({"init": X[:4]}, torch.cat([X, X[:1] * torch.nan]), ValueError, "NaN"),
        ({"init": "random"}, torch.cat([X, X[:1] * torch.inf]), ValueError, "infinity"),
        ({}, X * 1e30, ValueError, "largest float32"),
        ({"metric": "cosine"}, torch.cat([X, 0 * X[:1]]), ValueError, "row of zeros"),
        ({"metric": "dot"}, X, ValueError, "metric must be one of euclidean, cosine, got 'dot'"),
        ({"init": "best"}, X, ValueError, r"init must be one of .*, got 'best'"),
        ({"init": X[:5]}, X, ValueError, r"init must be \[K, D\] = \[4, 3\], got \[5, 3\]"),
        ({"init": X[:4, :2]}, X, ValueError, r"init must be \[K, D\] = \[4, 3\], got \[4, 2\]"),
        ({"n_clusters": 0}, X, ValueError, "n_clusters must be at least 1, got 0"),
        ({"n_clusters": 2.5}, X, TypeError, "n_clusters must be an integer, got 2.5"),
        ({"n_init": 0}, X, ValueError, "n_init must be at least 1, got 0"),
        ({"max_iter": 0}, X, ValueError, "max_iter must be at least 1, got 0"),
        ({"tol": -1.0}, X, ValueError, "tol must be at least 0, got -1.0"),
        ({"tol": float("nan")}, X, ValueError, "tol must be at least 0, got nan"),
        ({"init_size": 3}, X, ValueError, "init_size.* must be at least 4, got 3"),
        ({"random_state": "now"}, X, TypeError, "random_state must be an integer .*, got 'now'"),
        ({"random_state": 2**63}, X, ValueError, r"0 to 2\*\*63 - 1, .* got 9223372036854775808"),
        (
            {"random_state": np.random.RandomState(0)},
            X,
            TypeError,
            r"a torch.Generator or None, got RandomState",
        ),
        ({"tol": None}, X, TypeError, "tol must be a number, got None"),
        ({"tol": "a"}, X, TypeError, "tol must be a number, got 'a'"),
        ({"init": None}, X, TypeError, r"init must be one of .*, or the codes, got None"),
        ({"init": gaussian}, X, TypeError, r"init must be one of .*, or the codes, got <function"),
        ({"init": X[:4] * torch.nan}, X, ValueError, "init must be finite"),
        ({"init": X[:4, 0]}, X, ValueError, r"init must be \[n, D\], got \[4\]"),
        ({"init": 0 * X[:4], "metric": "cosine"}, X, ValueError, "init must be finite.* of zeros"),
        ({"init": X[:5]}, [X], ValueError, r"init must be \[K, D\] = \[4, 3\], got \[5, 3\]"),
        ({"init": X[:4]}, [X[:, :2]], ValueError, r"batches must be \[n, D=3\], got \[20, 2\]"),
        ({}, [X, X.double()], ValueError, "one dtype, got torch.float32, then torch.float64"),
        ({}, Counted([{"x": X}]), TypeError, r"tensors or \(tensor, ...\) tuples, got dict"),
        ({}, Counted([({}, X)]), TypeError, "got tuple that begins with dict"),
    ],
)
def test_wrong_input(arguments, x, error, message):
    with pytest.raises(error, match=message):
        KMeans(**{"n_clusters": 4, **arguments}).fit(x)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(19), r"sample_weight must be \[N=20\], got \[19\]"),
        (-torch.ones(20), "not negative"),
        (torch.zeros(20), "zero for all rows"),
        (torch.ones(20) / 0, "finite"),
        (torch.full((20,), 1e-220, dtype=torch.float64), r"between 1e-200 and 1e\+200, got 1e-220"),
        (torch.full((20,), 1e300, dtype=torch.float64), r"between 1e-200 and 1e\+200, got 1e\+300"),
    ],
)
def test_wrong_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        KMeans(4).fit(X, sample_weight=weights)


def test_weights_need_a_matrix():
    with pytest.raises(ValueError, match="sample_weight must be None for an iterable"):
        KMeans(4).fit([X], sample_weight=torch.ones(20))


@pytest.mark.parametrize("call", ["predict", "transform", "score"])
def test_calls_on_other_data(call):
    with pytest.raises(ValueError, match="call fit before"):
        getattr(KMeans(4), call)(X)
    model = KMeans(4, random_state=0).fit(X)
    with pytest.raises(ValueError, match=r"X has 2 features, .* expecting 3 .*\[N, D=3\]"):
        getattr(model, call)(X[:, :2])
    with pytest.raises(ValueError, match="NaN"):
        getattr(model, call)(torch.where(X[3, 1] == X, torch.nan, X))
    if call != "transform":
        with pytest.raises(ValueError, match=r"batches must be \[n, D=3\], got \[20, 2\]"):
            getattr(model, call)([X[:, :2]])


def test_fewer_rows_than_codes_can_be_predicted():
    model = KMeans(4, random_state=0).fit(X)
    assert torch.equal(model.predict(X[:2]), model.labels_[:2])
    assert model.score(X[:2], sample_weight=[0.0, 2.0]) == pytest.approx(
        -2 * float(model.transform(X[1:2]).min()) ** 2, rel=1e-5
    )
