"""An accelerated residual quantizer follows its codebooks: what they learn, what they change."""

import copy

import pytest
import torch
from other_libraries import inner_module

from vqvae_fast import accelerate

K, D = 32, 8
SEARCHES = {"encodec.quantization.core_vq": "quantize", "moshi.quantization.core_vq": "_quantize"}


@pytest.fixture(params=SEARCHES)
def library(request, monkeypatch):
    return inner_module(monkeypatch, request.param)


@pytest.fixture
def module(library):
    torch.manual_seed(0)
    options = {"dim": D, "codebook_size": K, "decay": 0.5}
    if library.__name__.startswith("encodec"):
        options |= {"kmeans_init": False, "threshold_ema_dead_code": 0}
    else:
        options |= {"codebook_offset": 0, "threshold_usage_ratio": 0.0}
    module = library.ResidualVectorQuantization(num_quantizers=3, **options)
    for name, tensor in module.state_dict().items():
        if "init" in name or "cluster" in name:
            tensor.fill_(1)
        elif "embed" in name:
            tensor.copy_(torch.randn(K, D))
    return module.eval()


@pytest.fixture
def x():
    return torch.randn(4, D, 50, generator=torch.Generator().manual_seed(1))


def _codes(module, x):
    with torch.no_grad():
        return module.eval().encode(x)


def test_codes_after_training_are_those_of_the_new_books(library, module, x):
    fast = copy.deepcopy(module)
    accelerate(fast, quiet=True)
    for _ in range(3):
        assert torch.equal(_codes(fast, x), _codes(module, x))
        for each in (module, fast):
            torch.manual_seed(2)
            each.train()(x)


def test_a_codebook_that_is_left_alone_searches_in_its_own_way(library, module, x):
    name = SEARCHES[library.__name__]
    codebook = module.layers[0]._codebook
    setattr(codebook, name, lambda z: torch.zeros(len(z), dtype=torch.int64))
    expected = _codes(module, x)
    done = accelerate(module, quiet=True)
    assert any(name in place.about for place in done.left)
    assert torch.equal(_codes(module, x), expected)


def test_a_codebook_of_a_subclass_is_called(library, module, x):
    codebook = module.layers[0]._codebook

    class Backwards(type(codebook)):
        def encode(self, z):
            return K - 1 - super().encode(z)

    codebook.__class__ = Backwards
    expected = _codes(module, x)
    accelerate(module, quiet=True)
    assert torch.equal(_codes(module, x), expected)
