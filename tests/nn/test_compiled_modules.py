"""Whole training and evaluation steps under torch.compile(fullgraph=True)."""

import copy

import pytest
import torch

from vqvae_fast.models import VQVAE
from vqvae_fast.nn import VectorQuantizer

# Dynamo itself makes an instance of every autograd Function that it traces.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*Function.*should not be instantiated:DeprecationWarning"
)

OPTIONS = [
    {},
    {"dead_code_threshold": 1.0},
    {"learning": "ema"},
    {"learning": "ema", "dead_code_threshold": 1.0, "kmeans_init": True},
]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    # The compiled step draws its random numbers as the eager one does.
    with torch._inductor.config.patch(fallback_random=True):
        yield


def assert_same_steps(module, shape, call, *, backend="aot_eager", dynamic=None, steps=3):
    """Forward and backward of ``module`` in its mode, eager and compiled, side by side."""
    compiled_module = copy.deepcopy(module)
    compiled = torch.compile(
        lambda z: call(compiled_module, z), fullgraph=True, backend=backend, dynamic=dynamic
    )
    for step in range(steps):
        z = torch.randn(shape[0] + (step if dynamic else 0), *shape[1:])
        inputs = [z.clone().requires_grad_() for _ in range(2)]
        results = []
        for function, leaf in zip((lambda z: call(module, z), compiled), inputs, strict=True):
            torch.manual_seed(step)
            results.append(function(leaf))
            loss, output = results[-1][:2]
            (loss + output.square().sum()).backward()
        torch.testing.assert_close(*results)
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
        for eager, other in zip(module.parameters(), compiled_module.parameters(), strict=True):
            torch.testing.assert_close(eager.grad, other.grad)
        for name, value in module.state_dict().items():
            torch.testing.assert_close(value, compiled_module.state_dict()[name])


def quantize(module, z):
    loss, z_q, perplexity, _, indices = module(z)
    return loss, z_q, perplexity, indices


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_quantizer(options, training):
    module = VectorQuantizer(16, 4, **options)
    module(torch.randn(8, 4, 4, 4))  # k-means has what it needs: the steady state begins
    assert_same_steps(module.train(training), (2, 4, 5, 5), quantize)


@pytest.mark.parametrize("learning", ["gradient", "ema"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_quantizer_with_inductor(learning):
    module = VectorQuantizer(16, 4, learning=learning, dead_code_threshold=1.0)
    assert_same_steps(module, (2, 4, 5, 5), quantize, backend="inductor")


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_batches_of_any_size(learning):
    module = VectorQuantizer(16, 4, learning=learning, dead_code_threshold=1.0)
    assert_same_steps(module, (2, 4, 5, 5), quantize, dynamic=True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_model(learning, training):
    options = {"learning": learning, "dead_code_threshold": 0.5}
    model = VQVAE(8, 4, 1, 16, 4, quantizer=options).train(training)
    assert_same_steps(model, (2, 3, 16, 16), lambda model, x: model(x), steps=2)


def test_the_one_hot_leaves_the_graph_unbuilt():
    module = VectorQuantizer(16, 4)
    z = torch.randn(2, 4, 5, 5)
    expected = module(z)
    results = torch.compile(module, fullgraph=True, backend="aot_eager")(z)
    assert results[3].materialized is None
    assert results[3].shape == (50, 16)
    assert torch.equal(results[3].dense(), expected[3].dense())


def test_the_one_hot_can_be_read_inside_the_graph():
    module = VectorQuantizer(16, 4)
    z = torch.randn(2, 4, 5, 5)

    def rebuild(z):
        encodings = module(z)[3]
        return encodings.dense() @ module.codebook, encodings.sum(0)

    expected = rebuild(z)
    torch.testing.assert_close(
        torch.compile(rebuild, fullgraph=True, backend="aot_eager")(z), expected
    )


def test_collecting_for_kmeans_breaks_the_graph_but_not_the_training():
    module = VectorQuantizer(16, 4, learning="ema", kmeans_init=True, kmeans_samples=100)
    compiled = torch.compile(module, backend="aot_eager")
    for _ in range(3):
        compiled(torch.randn(2, 4, 5, 5))
    assert module.kmeans.done


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_export(learning, strict):
    model = VQVAE(8, 4, 1, 16, 4, quantizer={"learning": learning}).eval()
    x, z = torch.randn(2, 3, 16, 16), torch.randn(2, 4, 5, 5)
    program = torch.export.export(model, (x,), strict=strict)
    torch.testing.assert_close(program.module()(x), model(x))
    quantizer = model.vector_quantization
    results = torch.export.export(quantizer, (z,), strict=strict).module()(z)
    torch.testing.assert_close(results[:3], quantizer(z)[:3])
    assert torch.equal(results[3].dense(), quantizer(z)[3].dense())
