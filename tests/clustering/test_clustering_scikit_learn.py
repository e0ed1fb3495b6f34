"""KMeans as an estimator of scikit-learn, and its results beside those of scikit-learn."""

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from lloyd_in_float64 import blobs, gaussian
from sklearn.base import clone
from sklearn.cluster import KMeans as ScikitLearn
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import vqvae_fast
from vqvae_fast import KMeans

_LEFT_OUT = {
    # The error is ours: a ValueError and AttributeError, so that scikit-learn need not be there.
    "check_estimators_unfitted": "the error is not a class of scikit-learn",
    # scikit-learn's own KMeans leaves it out for the same reason.
    "check_sample_weight_equivalence_on_dense_data": "a start draws other rows",
}


with warnings.catch_warnings():
    # The class does not inherit from BaseEstimator, because scikit-learn need not be there.
    warnings.simplefilter("ignore", UserWarning)
    _WITH_CHECKS = parametrize_with_checks(
        [KMeans(n_clusters=3, random_state=0)], expected_failed_checks=lambda _: _LEFT_OUT
    )


@_WITH_CHECKS
@pytest.mark.filterwarnings("ignore")
def test_estimator_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("tol", [0.0, 1e-4])
@pytest.mark.parametrize("weighted", [False, True])
def test_results_are_those_of_scikit_learn(tol, weighted):
    x = blobs(30, 60, 5, spread=1.0).numpy()
    weights = np.random.default_rng(0).uniform(0.5, 2, len(x)) if weighted else None
    arguments = {"init": x[:30], "max_iter": 100, "tol": tol, "n_init": 1}
    ours = KMeans(30, **arguments).fit(x, sample_weight=weights)
    theirs = ScikitLearn(30, **arguments).fit(x, sample_weight=weights)
    assert np.array_equal(ours.labels_, theirs.labels_)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-5)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, atol=2e-5)
    np.testing.assert_allclose(ours.transform(x), theirs.transform(x), atol=1e-3)
    assert np.array_equal(ours.predict(x), theirs.predict(x))
    assert ours.score(x) == pytest.approx(theirs.score(x), rel=1e-5)
    if not weighted:  # scikit-learn's tolerance is a share of the variance without weights
        assert ours.n_iter_ == theirs.n_iter_


def test_clone_parameters_and_pickle():
    start = gaussian(4, 3)
    model = KMeans(4, init=start, metric="cosine", tol=0.5)
    copied = clone(model)
    assert torch.equal(copied.init, start)
    assert copied.get_params().keys() == model.get_params().keys()
    assert (copied.tol, copied.metric) == (0.5, "cosine")
    assert model.set_params(n_clusters=5) is model
    assert model.n_clusters == 5
    with pytest.raises(ValueError, match=r"parameters must be among n_clusters, .* got 'clusters'"):
        model.set_params(clusters=5)
    assert repr(KMeans(4, tol=0.5)) == "KMeans(n_clusters=4, tol=0.5)"
    x = gaussian(50, 3)
    fitted = KMeans(4, random_state=0).fit(x)
    assert torch.equal(pickle.loads(pickle.dumps(fitted)).predict(x), fitted.labels_)


def test_pipelines_and_searches():
    x = blobs(6, 30, 4).numpy()
    steps = make_pipeline(StandardScaler(), KMeans(6, random_state=0))
    assert len(np.unique(steps.fit_predict(x))) == 6
    search = GridSearchCV(KMeans(random_state=0), {"n_clusters": [2, 6]}, cv=3).fit(x)
    assert search.best_params_ == {"n_clusters": 6}


def test_the_package_does_not_import_scikit_learn(fresh_python):
    script = (
        "import sys, torch, vqvae_fast\n"
        "vqvae_fast.KMeans(3).fit(torch.randn(20, 2)).transform(torch.randn(5, 2))\n"
        "print('sklearn' in sys.modules)"
    )
    package = Path(vqvae_fast.__file__).parents[1]
    ran = fresh_python.run(script, package=package)
    assert ran.stdout.split() == ["False"], ran.stderr
