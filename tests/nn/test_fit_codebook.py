"""fit_codebook: quantizers of all kinds start from k-means over data."""

import copy

import pytest
import torch
from process_group import run_together
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from vqvae_fast import (
    GroupedResidualVQ,
    KMeans,
    RandomProjectionQuantizer,
    ResidualSimVQ,
    ResidualVQ,
    SimVQ,
    VectorQuantize,
    VectorQuantizer,
    fit_codebook,
)
from vqvae_fast.nn import SplitResidualVQ

D, K = 8, 16
X = torch.randn(6, 100, D, generator=torch.Generator().manual_seed(0)) * 3 + 1
MAP = X.transpose(1, 2).unflatten(2, (10, 10))  # [B, D, 10, 10]

MAKERS = {
    "VectorQuantizer": lambda: VectorQuantizer(K, D, learning="ema", dead_code_threshold=1.0),
    "VectorQuantizer, k-means": lambda: VectorQuantizer(K, D, learning="ema", kmeans_init=True),
    "VectorQuantizer, gradient": lambda: VectorQuantizer(K, D),
    "VectorQuantize": lambda: VectorQuantize(dim=D, codebook_size=K),
    "k-means": lambda: VectorQuantize(dim=D, codebook_size=K, kmeans_init=True),
    "gradient": lambda: VectorQuantize(
        dim=D, codebook_size=K, learnable_codebook=True, ema_update=False
    ),
    "projection": lambda: VectorQuantize(dim=D, codebook_size=K, codebook_dim=3),
    "cosine": lambda: VectorQuantize(dim=D, codebook_size=K, use_cosine_sim=True),
    "feature map": lambda: VectorQuantize(dim=D, codebook_size=K, accept_image_fmap=True),
    "heads": lambda: VectorQuantize(
        dim=D, codebook_size=K, heads=2, codebook_dim=4, separate_codebook_per_head=True
    ),
    "heads of one book": lambda: VectorQuantize(dim=D, codebook_size=K, heads=2, codebook_dim=4),
    "ResidualVQ": lambda: ResidualVQ(dim=D, codebook_size=K, num_quantizers=3, kmeans_init=True),
    "projected stages": lambda: ResidualVQ(
        dim=D, codebook_size=K, num_quantizers=3, codebook_dim=3, project_per_stage=True
    ),
    "projected ResidualVQ": lambda: ResidualVQ(
        dim=D, codebook_size=K, num_quantizers=2, codebook_dim=4, quantize_dropout=True
    ),
    "cosine ResidualVQ": lambda: ResidualVQ(
        dim=D, codebook_size=K, num_quantizers=2, use_cosine_sim=True
    ),
    "GroupedResidualVQ": lambda: GroupedResidualVQ(
        dim=D, groups=2, codebook_size=K, num_quantizers=2
    ),
    "SplitResidualVQ": lambda: SplitResidualVQ(
        dim=D, codebook_dim=4, codebook_size=K, num_quantizers=3
    ),
    "SimVQ": lambda: SimVQ(dim=D, codebook_size=K),
    "ResidualSimVQ": lambda: ResidualSimVQ(dim=D, codebook_size=K, num_quantizers=2),
}


def data_for(name, module):
    if isinstance(module, VectorQuantizer) or name == "feature map":
        return MAP
    return X.transpose(1, 2) if isinstance(module, SplitResidualVQ) else X


@torch.no_grad()
def made(name):
    """A quantizer whose projections there and back are each other's pseudo-inverses."""
    torch.manual_seed(0)
    module = MAKERS[name]()
    for part in module.modules():
        for there, back in (("project_in", "project_out"), ("input_proj", "output_proj")):
            into, out = getattr(part, there, None), getattr(part, back, None)
            if isinstance(into, (nn.Linear, nn.Conv1d)):
                inverse = torch.linalg.pinv(into.weight.flatten(1))
                out.weight.copy_(inverse.view_as(out.weight))
                if into.bias is not None:
                    out.bias.copy_(-inverse @ into.bias)
    return module


def error_of(module, x):
    """The mean squared error of the module in eval."""
    training = module.training
    module.eval()
    with torch.no_grad():
        result = module(x)
    module.train(training)
    quantized = result[1] if isinstance(module, VectorQuantizer) else result[0]
    return float((quantized - x).square().mean())


def stages_of(module):
    return [part for part in module.modules() if isinstance(part, VectorQuantize)]


@pytest.mark.parametrize("name", MAKERS)
def test_the_error_falls(name):
    module = made(name)
    x = data_for(name, module)
    start = copy.deepcopy(module)
    for part in start.modules():  # codes at random vectors are a start, too
        if isinstance(part, VectorQuantize) and not part._codebook.initted:
            part.codebook = torch.randn_like(part.codebook)
    before = error_of(start, x)
    assert fit_codebook(module, x, random_state=0) is module
    assert module.training
    assert error_of(module, x) < before


@pytest.mark.parametrize("name", MAKERS)
def test_batches_give_what_a_tensor_gives(name):
    whole, batches = made(name), made(name)
    x = data_for(name, whole)
    fit_codebook(whole, x, random_state=0)
    loader = DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=2)
    fit_codebook(batches, loader, random_state=0)
    assert error_of(batches, x) < 1.1 * error_of(whole, x)


@pytest.mark.parametrize(
    "name",
    [
        "VectorQuantize",
        "k-means",
        "gradient",
        "projection",
        "ResidualVQ",
        "projected stages",
        "projected ResidualVQ",
    ],
)
def test_the_first_book_is_that_of_k_means(name):
    module = made(name)
    with torch.no_grad():
        rows = module.project_in(X.flatten(0, 1))
        if isinstance(module, ResidualVQ):
            rows = module.layers[0].project_in(rows)
    fit_codebook(module, X, random_state=0, max_iter=7)
    expected = KMeans(K, random_state=0, max_iter=7).fit(rows).cluster_centers_
    book = module.layers[0].codebook if isinstance(module, ResidualVQ) else module.codebook
    torch.testing.assert_close(book.detach(), expected, rtol=1e-4, atol=1e-4)


def test_averages_stand_at_the_codes():
    module = made("VectorQuantize")
    fit_codebook(module, list(X.split(2)), random_state=0)
    codebook = module._codebook
    counts = torch.bincount(module.eval()(X)[1].flatten(), minlength=K)
    torch.testing.assert_close(codebook.cluster_size[0], counts.clamp(min=1) / 3)
    before = codebook.embed.clone()
    codebook.update_ema()
    torch.testing.assert_close(codebook.embed, before)


@pytest.mark.parametrize(
    "name", ["VectorQuantizer, k-means", "VectorQuantizer", "k-means", "ResidualVQ", "cosine"]
)
def test_training_goes_on_from_the_codes(name):
    module = made(name)
    x = data_for(name, module)
    fit_codebook(module, x, random_state=0)
    before = error_of(module, x)
    for _ in range(3):
        module.train()(x)
    assert error_of(module, x) < 1.02 * before
    for part in stages_of(module):
        assert part._codebook.initted


def test_packs_of_a_frozen_module_are_made_anew():
    module = made("ResidualVQ").eval()
    fit_codebook(module, X, random_state=0)
    module.freeze()
    module(X)
    fit_codebook(module, X * 2, random_state=1)
    assert not module.training
    thawed = copy.deepcopy(module)
    thawed.unfreeze()
    assert torch.equal(module(X)[1], thawed(X)[1])


def test_codes_of_sim_vq_are_those_of_k_means():
    module = made("SimVQ")
    fit_codebook(module, X, random_state=0)
    expected = KMeans(K, random_state=0, max_iter=20).fit(X.flatten(0, 1)).cluster_centers_
    torch.testing.assert_close(module.codebook.detach(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (lambda: nn.Linear(D, D), TypeError, "must be a VectorQuantizer.*got Linear"),
        (
            lambda: RandomProjectionQuantizer(
                dim=D, num_codebooks=2, codebook_dim=4, codebook_size=K
            ),
            TypeError,
            "got RandomProjectionQuantizer",
        ),
        (
            lambda: VectorQuantize(dim=D, codebook_size=K, cosine_search=True),
            ValueError,
            "without cosine_search",
        ),
        (
            lambda: VectorQuantize(dim=D, codebook_size=K, affine_param=True),
            ValueError,
            "without affine_param",
        ),
        (
            lambda: ResidualVQ(
                dim=D, codebook_size=K, num_quantizers=2, implicit_neural_codebook=True
            ),
            ValueError,
            "without implicit_neural_codebook",
        ),
        (
            lambda: ResidualVQ(dim=D, codebook_size=K, num_quantizers=2, shared_codebook=True),
            ValueError,
            "without shared_codebook",
        ),
        (
            lambda: SimVQ(dim=D, codebook_size=K, codebook_transform=nn.Sequential()),
            ValueError,
            "is a torch.nn.Linear, got Sequential",
        ),
        (
            lambda: SimVQ(dim=D, codebook_size=K, frozen_codebook_dim=2),
            ValueError,
            r"Linear\(2, 8\) misses",
        ),
        (lambda: VectorQuantize(dim=D, codebook_size=601), ValueError, "n_samples=600 < n_clus"),
    ],
)
def test_what_is_refused(module, error, message):
    quantizer = module()
    before = copy.deepcopy(quantizer.state_dict())
    with pytest.raises(error, match=message):
        fit_codebook(quantizer, X)
    assert quantizer.training
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name])


def test_wrong_arguments():
    with pytest.raises(TypeError, match="itself chooses metric"):
        fit_codebook(made("VectorQuantize"), X, metric="cosine")
    with pytest.raises(TypeError, match="got generator, which can be read only once"):
        fit_codebook(made("VectorQuantize"), (x for x in X))
    with pytest.raises(TypeError, match="must be a tensor or an iterable, got NoneType"):
        fit_codebook(made("VectorQuantize"), None)
    with pytest.raises(ValueError, match="must have batches"):
        fit_codebook(made("VectorQuantize"), [])
    for batch, name in (({"x": X}, "dict"), (X.numpy(), "ndarray")):
        with pytest.raises(TypeError, match=rf"tensors or \(tensor, ...\) tuples, got {name}"):
            fit_codebook(made("VectorQuantize"), [batch])


class Exhausted:
    """Batches that a number of readings give, and the readings after that do not."""

    def __init__(self, readings):
        self.readings = readings

    def __iter__(self):
        self.readings -= 1
        return iter(X.split(2) if self.readings >= 0 else ())


@pytest.mark.parametrize("name", ["VectorQuantize", "ResidualVQ", "VectorQuantizer"])
@pytest.mark.parametrize("readings", range(1, 5))
def test_every_reading_must_give_the_same_batches(name, readings):
    module = made(name)
    before = copy.deepcopy(module.state_dict())
    batches = Exhausted(readings)
    if name == "VectorQuantizer":
        batches = _Mapped(batches)
    # The readings are that for the start, one for each of two rounds, that for the inertia, and
    # that for the numbers of vectors.
    with pytest.raises(ValueError, match="same batches at every reading: gave 3, then 0"):
        fit_codebook(module, batches, max_iter=2, tol=0)
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])


class _Mapped:
    """Batches as feature maps."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return (x.transpose(1, 2).unflatten(2, (10, 10)) for x in self.batches)


def _work(rank, folder):
    module = made("VectorQuantize")
    fit_codebook(module, X[:2] if rank == 0 else X[2:], random_state=0, synced=True)
    torch.save(module.state_dict(), f"{folder}/{rank}.pt")


def test_processes_start_from_the_same_codes(tmp_path):
    run_together(_work, 2, tmp_path)
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])
    module = made("VectorQuantize")
    module.load_state_dict(states[0])
    counts = torch.bincount(module.eval()(X)[1].flatten(), minlength=K)
    torch.testing.assert_close(module._codebook.cluster_size[0], counts.clamp(min=1).float())
    alone = fit_codebook(made("VectorQuantize"), X, random_state=0)
    assert error_of(module, X) < 1.1 * error_of(alone, X)
