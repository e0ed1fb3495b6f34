"""nearest_code's cosine and inner product, and the backend that a call asks for."""

import numpy as np
import pytest
import torch
from kernels import DTYPES

import vqvae_fast
from vqvae_fast import _native, settings
from vqvae_fast.backends import choice
from vqvae_fast.backends.reference import ops as reference
from vqvae_fast.dtypes import distance_dtype

pytestmark = pytest.mark.interpreted

METRICS = ["cosine", "dot"]


def products(z, codebook, metric):
    """z [N, D], codebook [K, D] -> [N, K] in longdouble, and the unit of its error [N]."""
    z, codes = (np.asarray(t.double(), dtype=np.longdouble) for t in (z, codebook))
    if metric == "cosine":
        # Like the search: the largest element first, so that no square under- or overflows.
        z, codes = (t / abs(t).max(axis=1, keepdims=True) for t in (z, codes))
        z, codes = (t / np.sqrt((t * t).sum(axis=1, keepdims=True)) for t in (z, codes))
    unit = np.sqrt((z * z).sum(axis=1)) * np.sqrt((codes * codes).sum(axis=1)).max()
    return z @ codes.T, unit


def check(z, codebook, metric, result=None):
    indices, distances = result or vqvae_fast.nearest_code(z, codebook, metric=metric)
    assert indices.dtype == torch.int64
    assert distances.dtype == distance_dtype(z.dtype)
    if codebook.dim() == 3:
        for h, book in enumerate(codebook):
            check(z[h], book, metric, (indices[h], distances[h]))
        return
    z, indices, distances = z.reshape(-1, z.shape[-1]), indices.flatten(), distances.flatten()
    all_products, unit = products(z, codebook, metric)
    chosen = np.take_along_axis(all_products, indices.numpy()[:, None], axis=1)[:, 0]
    tolerance = 4e-12 if z.dtype == torch.float64 else 4e-6
    assert (all_products.max(axis=1) - chosen <= tolerance * unit).all()
    expected = 1 - chosen if metric == "cosine" else -chosen
    error = abs(distances.double().numpy() - expected)
    info = np.finfo(distances.numpy().dtype)  # a product may pass the range of the result
    assert ((error <= tolerance / 4 * unit + info.tiny) | (abs(expected) > info.max)).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("z_shape", "codebook_shape"),
    [((1, 1), (1, 1)), ((5, 2), (7, 2)), ((3, 41, 17), (97, 17)), ((3, 9, 8), (3, 33, 8))],
)
def test_shapes_and_dtypes(metric, dtype, z_shape, codebook_shape):
    check(torch.randn(z_shape).to(dtype), torch.randn(codebook_shape).to(dtype), metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("z_scale", [1e-38, 1e-6, 1e6, 1e37])
@pytest.mark.parametrize("code_scale", [1e-18, 1.0, 1e18])
def test_scales(metric, z_scale, code_scale):
    z, codebook = torch.randn(50, 8) * z_scale, torch.randn(70, 8) * code_scale
    check(z, codebook, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_codes_of_very_different_length(metric):
    codebook = torch.randn(90, 8) * torch.logspace(-6, 2, 90)[:, None]
    check(torch.randn(60, 8), codebook, metric)


def test_dot_prefers_the_longer_code_and_cosine_the_better_direction():
    z, codebook = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.0], [2.0, 3.0]])
    assert vqvae_fast.nearest_code(z, codebook, metric="cosine").indices == 0
    assert vqvae_fast.nearest_code(z, codebook, metric="dot").indices == 1
    assert vqvae_fast.nearest_code(z, codebook, metric="dot").distances == -2


@pytest.mark.parametrize("metric", METRICS)
def test_duplicates_give_the_lowest_index(metric):
    codebook = torch.randn(11, 6).repeat(5, 1)
    indices, _ = vqvae_fast.nearest_code(torch.randn(40, 6), codebook, metric=metric)
    assert indices.max() < 11


@pytest.mark.parametrize("metric", METRICS)
def test_nan_and_infinity(metric):
    z, codebook = torch.randn(4, 3), torch.randn(5, 3)
    z[1, 0] = torch.nan
    codebook[0, 1], codebook[2, 2] = torch.nan, torch.inf
    indices, distances = vqvae_fast.nearest_code(z, codebook, metric=metric)
    assert indices[1] == 0
    assert distances[1].isnan()
    assert not torch.isin(indices[[0, 2, 3]], torch.tensor([0, 2])).any()
    finite = [1, 3, 4]
    rows = [0, 2, 3]
    check(
        z[rows],
        codebook[finite],
        metric,
        (torch.searchsorted(torch.tensor(finite), indices[rows]), distances[rows]),
    )


def test_what_has_no_direction():
    z = torch.tensor([[0.0, 0.0], [-1.0, 0.0]])
    codebook = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.1]])
    indices, distances = vqvae_fast.nearest_code(z, codebook, metric="cosine")
    assert indices.tolist() == [0, 2]  # the zero code has no direction to be chosen for
    assert distances[0].isnan()


def test_an_unknown_metric():
    with pytest.raises(ValueError, match="euclidean, cosine, dot, got 'cos'"):
        vqvae_fast.nearest_code(torch.randn(2, 3), torch.randn(4, 3), metric="cos")


@pytest.mark.parametrize("metric", ["euclidean", *METRICS])
def test_every_backend_of_this_device_agrees(metric):
    here = ["triton" if settings.current.triton_interprets else "cpu", "reference"]
    if not settings.current.triton_interprets and _native.extension is None:
        here = ["reference"]
    z, codebook = torch.randn(37, 8), torch.randn(53, 8)
    automatic = vqvae_fast.nearest_code(z, codebook, metric=metric)
    for backend in here:
        asked = vqvae_fast.nearest_code(z, codebook, metric=metric, backend=backend)
        assert torch.equal(asked.indices, automatic.indices)
        torch.testing.assert_close(asked.distances, automatic.distances)


def test_the_backend_that_was_asked_for_serves(monkeypatch):
    def nearest_code(z, codebook):
        return torch.full((len(z),), 3), torch.zeros(len(z))

    monkeypatch.setattr(reference, "nearest_code", nearest_code)
    z, codebook = torch.randn(4, 3), torch.randn(5, 3)
    choice.kernels.cache_clear()
    try:
        assert (vqvae_fast.nearest_code(z, codebook, backend="reference").indices == 3).all()
    finally:
        choice.kernels.cache_clear()
    if _native.extension is not None:
        assert (vqvae_fast.nearest_code(z, codebook, backend="cpu").indices != 3).any()


def test_a_backend_that_cannot_serve_says_why():
    z, codebook = torch.randn(2, 3), torch.randn(4, 3)
    with pytest.raises(RuntimeError, match="'cuda', but it serves CUDA tensors, not cpu"):
        vqvae_fast.nearest_code(z, codebook, backend="cuda")
    with pytest.raises(ValueError, match="triton, cuda, cpu, reference, got 'gpu'"):
        vqvae_fast.nearest_code(z, codebook, backend="gpu")


@pytest.mark.parametrize("metric", METRICS)
def test_compiled_as_eager(metric):
    def search(z, codebook):
        return vqvae_fast.nearest_code(z, codebook, metric=metric, backend="reference")

    z, codebook = torch.randn(9, 5), torch.randn(7, 5)
    compiled = torch.compile(search, fullgraph=True, backend="aot_eager")(z, codebook)
    assert torch.equal(compiled.indices, search(z, codebook).indices)
    torch.testing.assert_close(compiled.distances, search(z, codebook).distances)


@pytest.mark.parametrize(
    ("dtype", "z_scale", "code_scale"),
    [
        (torch.float32, 1.0, 1e-43),
        (torch.float32, 1e-43, 5e-45),
        (torch.float64, 1e-320, 1e300),
        (torch.float64, 1e300, 1e-310),
        (torch.float64, 1.0, 1e200),
        (torch.float64, 1.0, 1e-170),
    ],
    ids=str,
)
def test_dot_at_the_ends_of_the_range(dtype, z_scale, code_scale):
    """The columns that make all codes equally long have digits, and squares do not overflow."""
    z = (torch.randn(50, 69, dtype=torch.float64) * z_scale).to(dtype)
    codebook = (torch.randn(300, 69, dtype=torch.float64) * code_scale).to(dtype)
    check(z, codebook, "dot")
