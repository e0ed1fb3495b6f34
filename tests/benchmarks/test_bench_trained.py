"""Vectors of models that the benchmarks train: seeded, cached, and trained again when damaged."""

import numpy as np
import pytest
import torch

from vqvae_fast import training
from vqvae_fast.bench import trained as module
from vqvae_fast.bench.data import Shape
from vqvae_fast.bench.trained import cache_folder, trained, trained_stages

K, D, ROWS = 12, 4, 40
TINY = {"h_dim": 8, "res_h_dim": 4, "batch_size": 4, "crop": 8, "steps": 3, "eval_crops": 4}
TINY |= {"photographs": ("coffee",)}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and how often something was trained."""
    monkeypatch.setenv("VQVAE_FAST_BENCH_CACHE", str(tmp_path / "cache"))
    trainings = []
    train = module._train
    monkeypatch.setattr(module, "_train", lambda *given: (trainings.append(1), train(*given))[1])
    return trainings


def _only_file():
    (path,) = cache_folder().iterdir()
    return path


def test_trained_once_and_then_loaded(cache):
    first = trained(K, D, ROWS, **TINY)
    assert first.shape == Shape(ROWS, K, D)
    assert first.source == "trained"
    assert first.z.std() > 0
    again = trained(K, D, ROWS, **TINY)
    assert len(cache) == 1
    assert torch.equal(first.z, again.z)
    assert torch.equal(first.codebook, again.codebook)
    narrow = trained(K, D, ROWS, torch.bfloat16, **TINY)
    assert narrow.z.dtype == narrow.codebook.dtype == torch.bfloat16
    assert len(cache) == 1


def test_two_trainings_give_the_same_bits(cache, tmp_path, monkeypatch):
    first = trained(K, D, ROWS, **TINY)
    monkeypatch.setenv("VQVAE_FAST_BENCH_CACHE", str(tmp_path / "other"))
    torch.rand(3)  # the caller's random state has no part in it
    second = trained(K, D, ROWS, **TINY)
    assert len(cache) == 2
    assert torch.equal(first.z, second.z)
    assert torch.equal(first.codebook, second.codebook)


@pytest.mark.slow
def test_whatever_decides_the_result_trains_anew(cache, monkeypatch):
    first = trained(K, D, ROWS, **TINY)
    other_seed = trained(K, D, ROWS, **TINY, seed=1)
    assert not torch.equal(first.z, other_seed.z)
    trained(K, D, ROWS + 1, **TINY)
    monkeypatch.setattr(module.vqvae_fast, "__version__", "0.0.0+other")
    trained(K, D, ROWS, **TINY)
    monkeypatch.setattr(module.environment, "versions", lambda names: {"torch": "1.0"})
    trained(K, D, ROWS, **TINY)
    assert len(cache) == 5
    assert len(list(cache_folder().iterdir())) == 5


def _cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[300] ^= 1  # within the latents, which come first
    path.write_bytes(content)


def _other_arrays(path):
    np.savez(path, z=np.zeros((ROWS, D)))


def _other_shape(path):
    np.savez(path, z=np.zeros((ROWS, D)), codebook=np.zeros((K + 1, D)))


@pytest.mark.quick(1)
@pytest.mark.parametrize("damage", [_cut, _flip, _other_arrays, _other_shape])
def test_a_damaged_file_is_trained_again(cache, damage):
    first = trained(K, D, ROWS, **TINY)
    damage(_only_file())
    again = trained(K, D, ROWS, **TINY)
    assert len(cache) == 2
    assert torch.equal(first.z, again.z)
    trained(K, D, ROWS, **TINY)
    assert len(cache) == 2
    _only_file()  # and nothing was left beside it


def test_an_interrupted_training_is_not_kept(cache, monkeypatch):
    train = training.train
    monkeypatch.setattr(training, "train", lambda config: train(config)._replace(interrupted=True))
    with pytest.raises(KeyboardInterrupt):
        trained(K, D, ROWS, **TINY)
    assert list(cache_folder().iterdir()) == []


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("VQVAE_FAST_BENCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "vqvae_fast" / "bench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "vqvae_fast" / "bench"


def test_stages_fit_what_is_left(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    z, codebook = torch.randn(200, D, generator=generator), torch.randn(K, D, generator=generator)
    monkeypatch.setattr(module, "trained", lambda *_: (z, codebook, "trained"))
    rows, books = trained_stages(K, D, 3)
    assert torch.equal(rows, z)
    assert books.shape == (3, K, D)
    assert torch.equal(books[0], codebook)
    assert torch.equal(books, trained_stages(K, D, 3)[1])
    left = [z]
    for book in books:
        left.append(left[-1] - book[torch.cdist(left[-1], book).argmin(dim=1)])
    errors = [float(part.square().mean()) for part in left]
    assert errors[0] > errors[1] > errors[2] > errors[3]
