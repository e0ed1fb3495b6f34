"""Whole training and evaluation steps under torch.compile(fullgraph=True)."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from vqvae_fast.models import VQVAE
from vqvae_fast.nn import SimVQ, VectorQuantize, VectorQuantizer

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


@pytest.mark.slow
@pytest.mark.parametrize("learning", ["gradient", "ema"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_quantizer_with_inductor(learning):
    module = VectorQuantizer(16, 4, learning=learning, dead_code_threshold=1.0)
    assert_same_steps(module, (2, 4, 5, 5), quantize, backend="inductor")


@pytest.mark.quick(1)
@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_batches_of_any_size(learning):
    module = VectorQuantizer(16, 4, learning=learning, dead_code_threshold=1.0)
    assert_same_steps(module, (2, 4, 5, 5), quantize, dynamic=True)


@pytest.mark.quick(1)
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


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "options", [{}, {"learning": "ema"}, {"learning": "ema", "dead_code_threshold": 0.5}]
)
def test_k_means_in_compiled_steps(options, backend):
    """Two batches are collected, the third brings the codes, the fourth finds them there."""
    module = VectorQuantizer(16, 4, kmeans_init=True, kmeans_samples=120, **options)
    start = module.codebook.detach().clone()
    compiled_module = copy.deepcopy(module)
    graphs = CompileCounterWithBackend(backend)
    compiled = torch.compile(compiled_module, fullgraph=True, backend=graphs)
    for step in range(5):
        z = torch.randn(2, 4, 5, 5)
        sides = []
        for function in (module, compiled):
            torch.manual_seed(step)
            leaf = z.clone().requires_grad_()
            loss, z_q, _, _, indices = function(leaf)
            (loss + z_q.square().sum()).backward()
            sides.append((loss, z_q, indices, leaf.grad))
        torch.testing.assert_close(*sides)
        assert torch.equal(sides[1][1], z) is (step < 2), "vectors pass until the codes are there"
        torch.testing.assert_close(compiled_module.state_dict(), module.state_dict())
        assert compiled_module.kmeans.done is (step >= 2)
        module.zero_grad()
        compiled_module.zero_grad()
    assert not torch.equal(compiled_module.codebook, start)
    assert graphs.frame_count == 2, "one graph collects, another has codes"


@pytest.mark.parametrize("kind", ["drop-in", "reference"])
def test_a_compiled_module_starts_from_what_the_buffer_says(kind):
    """When its graph is made: after a functional_call, and after a state that was copied in."""

    def make(**options):
        if kind == "drop-in":
            return VectorQuantize(4, 16, accept_image_fmap=True, **options)
        return VectorQuantizer(16, 4, kmeans_samples=20, learning="ema", **options)

    z = torch.randn(2, 4, 5, 5)
    untouched = make(kmeans_init=True)
    own = {name: tensor.clone() for name, tensor in untouched.state_dict().items()}
    torch.func.functional_call(untouched, own, (z,))
    torch.compile(untouched, fullgraph=True, backend="aot_eager")(50 + z)
    assert untouched.codebook.mean() > 40

    copied, source = make(kmeans_init=True), make(kmeans_init=True)
    source(z)
    states = source.state_dict(), copied.state_dict()
    for name, value in states[0].items():
        states[1][name].copy_(value)
    torch.compile(copied, fullgraph=True, backend="aot_eager")(50 + z)
    assert copied.codebook.mean() < 40


def test_a_graph_that_collects_is_left_when_codes_are_copied_in():
    module, source = (VectorQuantizer(16, 4, kmeans_init=True) for _ in range(2))
    source.set_codebook(torch.randn(16, 4))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    compiled(torch.randn(2, 4, 2, 2))
    states = source.state_dict(), module.state_dict()
    for name, value in states[0].items():
        states[1][name].copy_(value)
    for _ in range(20):
        compiled(torch.randn(2, 4, 5, 5))
    assert torch.equal(module.codebook, source.codebook)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "make",
    [
        lambda: VectorQuantize(8, 16, learnable_codebook=True, ema_update=False),
        lambda: VectorQuantize(8, 16, commitment_use_cross_entropy_loss=True, ema_update=False),
        lambda: SimVQ(8, 16),
        lambda: Reference(16, 8),
    ],
    ids=["learnable", "cross entropy", "SimVQ", "VectorQuantizer"],
)
def test_the_indices_may_be_written_to(make, backend):
    """As padding is marked; the backward pass wants them as they were found."""
    module = make()
    x = torch.randn(2, 40, 8)
    results = []
    for function in (module, module, torch.compile(module, fullgraph=True, backend=backend)):
        leaf = x.clone().requires_grad_()
        quantized, indices, loss = function(leaf)
        if results:
            indices.fill_(3)
        module.zero_grad()
        (quantized.square().sum() + loss).backward()
        results.append([leaf.grad, *(parameter.grad.clone() for parameter in module.parameters())])
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


class Reference(VectorQuantizer):
    """The reference's class with the results, and on the vectors, of the others."""

    def forward(self, x):
        loss, quantized, _, _, indices = super().forward(x.movedim(-1, 1)[..., None])
        return quantized, indices, loss


def test_a_cleared_flag_reaches_a_compiled_module_by_train():
    module = VectorQuantize(4, 16, kmeans_init=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        compiled(torch.randn(2, 25, 4))
    module._codebook.initted.fill_(False)
    module.train()
    compiled(50 + torch.randn(2, 25, 4))
    assert module._codebook.initted
    assert module.codebook.mean() > 40


@pytest.mark.quick(1)
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
