"""What accelerate() says of quantizers that it leaves, and of which modules it says nothing."""

import pytest
import torch
from classes_by_shape import Quantize, WithOneHot
from other_libraries import installed
from torch import nn

from vqvae_fast import accelerate
from vqvae_fast.acceleration import Recipe, register
from vqvae_fast.acceleration.known import KNOWN


def _gumbel() -> nn.Module:
    library = installed("transformers.models.wav2vec2.modeling_wav2vec2")
    return library.Wav2Vec2GumbelVectorQuantizer(library.Wav2Vec2Config())


def _finite_scalar() -> nn.Module:
    library = installed("transformers.models.xcodec2.modeling_xcodec2")
    return library.Xcodec2Quantizer(library.Xcodec2Config())


def _convolutions() -> nn.Module:
    library = installed("transformers.models.flava.modeling_flava")
    config = library.FlavaImageCodebookConfig(hidden_size=8, vocab_size=16, num_blocks_per_group=1)
    return library.FlavaImageCodebook(config)


def _of_name(name: str) -> nn.Module:
    inner = type(name, (nn.Module,), {})()
    outer = type(f"{name}s", (nn.Module,), {})()
    outer.inner = inner
    return outer


@pytest.mark.parametrize(
    ("build", "place", "reason"),
    [
        (_gumbel, "model", "Gumbel softmax"),
        (_finite_scalar, "model.quantizer", "finite scalar quantization"),
        (_convolutions, "model", "outputs of a convolution"),
        (lambda: _of_name("ResidualFSQ"), "model", "finite scalar quantization"),
        (lambda: _of_name("LFQ"), "model", "lookup-free quantization"),
        (lambda: _of_name("BinarySphericalQuantizer"), "model", "lookup-free quantization"),
        (lambda: _of_name("IndexPropagationQuantize"), "model", "largest inner product"),
        (lambda: _of_name("GumbelQuantize"), "model", "Gumbel softmax"),
        (lambda: _of_name("CsmCodebooksHead"), "model", "predicts codes"),
    ],
)
def test_the_reason_is_given_once_where_there_is_no_nearest_code(build, place, reason):
    model = nn.Module()
    model.model = build()
    done = accelerate(model, quiet=True)
    assert done.accelerated == []
    assert [left.name for left in done.left] == [place]
    assert reason in done.left[0].about


@pytest.mark.parametrize(
    "name", ["ChameleonVQVAEEncoder", "VQModel", "VQGANDecoder", "SelfQKVAttention", "Vq_Vae"]
)
def test_parts_of_models_are_not_taken_for_quantizers(name):
    assert accelerate(_of_name(name), quiet=True).left == []


@pytest.mark.parametrize("name", ["ResidualVQ", "MyQuantizer", "EuclideanCodebook", "VQEmbedding"])
def test_an_unknown_quantizer_is_named(name):
    done = accelerate(nn.Sequential(_of_name(name)), quiet=True)
    assert [left.kind for left in done.left] == [f"{name}s", name]
    assert {left.about for left in done.left} == {"there is no recipe for this class"}


def test_what_lies_in_a_known_quantizer_or_around_one_is_not_named():
    model = type("OuterQuantizer", (nn.Module,), {})()
    model.known = Quantize(4, 8)
    model.known.part = type("InnerCodebook", (nn.Module,), {})()
    model.other = type("OtherQuantizer", (nn.Module,), {})()
    assert [str(left) for left in accelerate(model, quiet=True).left] == [
        "  other (OtherQuantizer): there is no recipe for this class"
    ]


def test_a_recipe_of_the_user_comes_before_a_reason_without_one():
    before = list(KNOWN)
    cls = type("FSQ", (nn.Module,), {"find": lambda self: 1})
    try:
        register(Recipe(f"{cls.__module__}.FSQ", {"find": lambda original, module: 2}))
        model = cls()
        assert accelerate(model, quiet=True).left == []
        assert model.find() == 2
    finally:
        KNOWN[:] = before


@pytest.mark.parametrize("name", ["nolibrary", "nolibrary.quantizers"])
def test_a_library_that_is_not_installed_is_named(name):
    before = list(KNOWN)
    try:
        register(Recipe("nolibrary.quantizers.Quantizer", {}))
        with pytest.raises(
            ValueError, match=r"know nolibrary\.quantizers\.Quantizer, which are not"
        ):
            accelerate(name)
    finally:
        KNOWN[:] = before


def test_one_of_several_recipes_for_a_shape_fits():
    first, second = (
        recipe
        for recipe in KNOWN
        if recipe.known.__class__ is not str and recipe.known(WithOneHot(8, 4, 0.3))
    )
    assert first.methods["forward"] is not second.methods["forward"]
    model = WithOneHot(8, 4, 0.3)
    accelerate(model, quiet=True)
    replaced = type(model).forward
    assert replaced._replacement is first.methods["forward"]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("build", [lambda: WithOneHot(8, 4, 0.3), lambda: Quantize(4, 8)])
def test_they_compile_in_one_graph(build, training):
    torch.manual_seed(0)
    model = build().train(training)
    z = torch.randn(2, 4, 4, 4)
    accelerate(model, quiet=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        expected = model(z)
        model.load_state_dict(state)
        found = compiled(z)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])
