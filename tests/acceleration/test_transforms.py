"""accelerate() under torch.func's transforms and under tracers: the model's own methods run."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from classes_by_shape import LlamaGen, LossFirst, Quantize, Second, SimVQ, WithOneHot
from same_results import accelerated, assert_same, leaves
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from vqvae_fast import accelerate, nearest_code

K, D = 48, 6

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


class Vqp(nn.Module):
    """A quantizer of vector-quantize-pytorch, for images."""

    def __init__(self, **options: Any):
        super().__init__()
        library = pytest.importorskip("vector_quantize_pytorch")
        self.quantizer = library.VectorQuantize(D, K, accept_image_fmap=True, **options)

    def forward(self, z: Tensor) -> Any:
        return self.quantizer(z)


class OfTokens(nn.Module):
    """VQ-VAE-2's quantizer, for images."""

    def __init__(self) -> None:
        super().__init__()
        self.quantizer = Quantize(D, K)

    def forward(self, z: Tensor) -> Any:
        return self.quantizer(z.permute(0, 2, 3, 1))


class Codes(nn.Module):
    """Gives the codes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.quantizer = Second(K, D, 0.4)

    def forward(self, z: Tensor) -> Tensor:
        return self.quantizer(z)[2][2]


QUANTIZERS: dict[str, Callable[[], nn.Module]] = {
    "taming": lambda: WithOneHot(K, D, 0.4),
    "first VQ-VAE": lambda: LossFirst(K, D, 0.4),
    "taming 2": lambda: Second(K, D, 0.4),
    "SimVQ": lambda: SimVQ(K, D),
    "LlamaGen": lambda: LlamaGen(K, D, 0.4, 0.0, True, False),
    "VQ-VAE-2": OfTokens,
    "vector-quantize-pytorch": Vqp,
    "vector-quantize-pytorch, gradients": lambda: Vqp(learnable_codebook=True, ema_update=False),
}


def _tensors(result: Any) -> list[Tensor]:
    return [part for part in leaves(result) if isinstance(part, Tensor)]


def _sum(result: Any) -> Tensor:
    return sum(part.sum() for part in _tensors(result) if part.is_floating_point())


def _vmap(module: nn.Module, x: Tensor) -> Any:
    return vmap(lambda one: tuple(_tensors(module(one))), randomness="same")(torch.stack([x, -x]))


def _grad(module: nn.Module, x: Tensor) -> Any:
    return grad(lambda given: _sum(module(given)))(x)


def _jvp(module: nn.Module, x: Tensor) -> Any:
    return jvp(lambda given: _sum(module(given)), (x,), (torch.ones_like(x),))


def _grad_of_parameters(module: nn.Module, x: Tensor) -> Any:
    values = {name: value.detach() for name, value in module.named_parameters()}
    values |= {name: value for name, value in module.named_buffers() if value.is_floating_point()}
    return grad(lambda given: _sum(functional_call(module, given, (x,))))(values)


def _vmap_of_parameters(module: nn.Module, x: Tensor) -> Any:
    values = {name: value.detach() for name, value in module.named_parameters()}
    values |= dict(module.named_buffers())
    stacked = {name: torch.stack([value, value]) for name, value in values.items()}
    return vmap(lambda given: tuple(_tensors(functional_call(module, given, (x,)))))(stacked)


def _symbolic_trace(module: nn.Module, x: Tensor) -> Any:
    return torch.fx.symbolic_trace(module)(x)


TRANSFORMS = [_vmap, _grad, _jvp, _grad_of_parameters, _vmap_of_parameters, _symbolic_trace]


@pytest.fixture(params=QUANTIZERS)
def module(request):
    return QUANTIZERS[request.param]()


def _outcome(transform: Callable[..., Any], module: nn.Module, x: Tensor) -> list[Any]:
    """What it gives and leaves behind; nothing but a mark where it fails."""
    torch.manual_seed(1)
    try:
        result = list(leaves(transform(module, x)))
    except Exception as problem:  # whatever another library and a transform raise
        return [type(problem)]
    return [*result, *module.state_dict().values()]


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("training", [False, True])
def test_transforms_give_what_the_model_gives(module, transform, training):
    x = torch.randn(2, D, 4, 4)
    module.train(training)
    ours = accelerated(module)
    found, expected = (_outcome(transform, each, x) for each in (ours, module))
    assert_same(found, expected, tolerance=0)
    ours.eval()
    module.eval()
    again, expected = (each(x) for each in (ours, module))
    for one, other in zip(_tensors(again), _tensors(expected), strict=True):
        torch.testing.assert_close(one, other)


def test_the_original_serves_most_of_them():
    """Otherwise the test above would compare nothing."""
    module, x = Second(K, D, 0.4), torch.randn(2, D, 4, 4)
    for transform in TRANSFORMS[:-1]:
        assert len(_outcome(transform, module, x)) > 1
    assert len(_outcome(_symbolic_trace, WithOneHot(K, D, 0.4).eval(), x)) > 1


@torch.no_grad()
def test_a_recorded_call_keeps_the_search_of_the_accelerated_model():
    """torch.jit.trace records it as it is."""
    module = Codes().eval()
    accelerate(module, quiet=True)
    traced = torch.jit.trace(module, (torch.randn(2, D, 4, 4),), check_trace=False)
    x = torch.randn(2, D, 4, 4)
    expected = nearest_code(x.permute(0, 2, 3, 1), module.quantizer.embedding.weight).indices
    assert torch.equal(traced(x).reshape(expected.shape), expected)
