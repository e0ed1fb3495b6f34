"""accelerate() on vectors that do not fit: the model's own code says what is wrong, or serves."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from classes_by_shape import LlamaGen, LossFirst, Quantize, Second, SimVQ, WithOneHot
from other_libraries import inner_module, installed
from same_results import accelerated, assert_same, outcome
from torch import Tensor, nn

from vqvae_fast.acceleration import Recipe, nearest, register
from vqvae_fast.acceleration.known import KNOWN

K, D, C = 24, 6, 10


def _dac(monkeypatch) -> nn.Module:
    library = inner_module(monkeypatch, "dac.nn.quantize")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its weight normalisation is the old one
        return library.VectorQuantize(C, K, D)


def _encodec(monkeypatch) -> nn.Module:
    library = inner_module(monkeypatch, "encodec.quantization.core_vq")
    return library.ResidualVectorQuantization(
        num_quantizers=2, dim=D, codebook_size=K, kmeans_init=False
    )


def _of_transformers(name: str, prefix: str) -> nn.Module:
    library = installed(f"transformers.models.{name}.modeling_{name}")
    sizes = {"num_embeddings": K, "codebook_size": K, "embed_dim": D}
    config = getattr(library, f"{prefix}VQVAEConfig")(**sizes)
    return getattr(library, f"{prefix}VQVAEVectorQuantizer")(config)


def _vqp(kind: str, **options: Any) -> nn.Module:
    library = pytest.importorskip("vector_quantize_pytorch")
    return getattr(library, kind)(dim=D, codebook_size=K, **options)


def _images() -> Tensor:
    return torch.randn(2, D, 4, 4)


def _audio() -> Tensor:
    return torch.randn(2, D, 16)


def _tokens() -> Tensor:
    return torch.randn(2, 5, D)


QUANTIZERS: dict[str, tuple[Callable[[Any], nn.Module], Callable[[], Tensor], int]] = {
    "taming": (lambda _: WithOneHot(K, D, 0.4), _images, 1),
    "first VQ-VAE": (lambda _: LossFirst(K, D, 0.4), _images, 1),
    "taming 2": (lambda _: Second(K, D, 0.4), _images, 1),
    "SimVQ": (lambda _: SimVQ(K, D), _images, 1),
    "LlamaGen": (lambda _: LlamaGen(K, D, 0.4, 0.0, False, False), _images, 1),
    "LlamaGen, directions": (lambda _: LlamaGen(K, D, 0.4, 0.0, True, False), _images, 1),
    "VQ-VAE-2": (lambda _: Quantize(D, K), _tokens, 2),
    "Chameleon": (lambda _: _of_transformers("chameleon", "Chameleon"), _images, 1),
    "GLM-Image": (lambda _: _of_transformers("glm_image", "GlmImage"), _images, 1),
    "DAC": (_dac, lambda: torch.randn(2, C, 16), 1),
    "EnCodec": (_encodec, _audio, 1),
    "vector-quantize-pytorch": (lambda _: _vqp("VectorQuantize"), _tokens, 2),
    "its ResidualVQ": (lambda _: _vqp("ResidualVQ", num_quantizers=2), _tokens, 2),
    "its SimVQ": (lambda _: _vqp("SimVQ"), _tokens, 2),
}

INPUTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "one channel more": lambda x, dim: torch.cat([x, x.narrow(dim, 0, 1)], dim),
    "twice the channels": lambda x, dim: torch.cat([x, x], dim),
    "half the channels": lambda x, dim: x.narrow(dim, 0, x.shape[dim] // 2),
    "float16": lambda x, dim: x.half(),
    "bfloat16": lambda x, dim: x.bfloat16(),
    "float64": lambda x, dim: x.double(),
    "integers": lambda x, dim: x.long(),
    "one dimension less": lambda x, dim: x[0],
    "one dimension more": lambda x, dim: x[None],
    "one dimension": lambda x, dim: x.flatten(),
    "another device": lambda x, dim: x.to("meta"),
}


def _result(module: nn.Module, x: Tensor) -> list[Any] | str:
    try:
        return outcome(module, x)
    except Exception as problem:  # whatever another library raises
        text = str(problem).splitlines()
        return f"{type(problem).__name__}: {text[0] if text else ''}"


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("training", [False, True])
def test_it_is_as_with_the_model(name, given, training, monkeypatch):
    make, inputs, dim = QUANTIZERS[name]
    module = make(monkeypatch).train(training)
    x = INPUTS[given](inputs(), dim)
    ours = accelerated(module)
    found, expected = _result(ours, x), _result(module, x)
    if isinstance(expected, str):
        assert found == expected
    else:
        assert not isinstance(found, str), found
        assert_same(found, expected, tolerance=1e-2 if x.element_size() == 2 else 2e-5)


class Lookup(nn.Module):
    """A quantizer of another library that serves all channels that there are."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(K, D))

    def find(self, x: Tensor) -> Tensor:
        return torch.full(x.shape[:-1], -1)

    def forward(self, x: Tensor) -> Tensor:
        return self.find(x)


def test_a_recipe_of_ones_own_leaves_what_does_not_fit_to_the_original():
    before = list(KNOWN)
    find = lambda original, module, x: nearest(module, x, module.codes)  # noqa: E731
    register(Recipe(f"{__name__}.Lookup", {"find": find}))
    try:
        module = accelerated(Lookup())
    finally:
        KNOWN[:] = before
    fits = torch.randn(3, D)
    assert (module(fits) >= 0).all()
    for other in (fits[:, 1:], fits.half(), fits.double(), fits[0, 0]):
        assert (module(other) == -1).all()
    with torch.autocast("cpu"):  # models cast there
        assert (module(fits.bfloat16()) >= 0).all()
        assert (module(fits.double()) == -1).all()
