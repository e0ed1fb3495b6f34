"""accelerate() on transformers' codecs whose stages are a table of codes each."""

import importlib.util
import math
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from other_libraries import installed
from torch import Tensor, nn

from vqvae_fast import accelerate, compare, functional

K, D, C, Q, B, T = 64, 8, 12, 4, 3, 25


class Codec(NamedTuple):
    """A quantizer of a codec.

    Attributes:
        build: makes it.
        channels: of what it encodes.
        limited: makes the arguments of ``encode`` for two of its stages.
    """

    build: Callable[[], nn.Module]
    channels: int
    limited: Callable[[Any], dict[str, Any]]


def _library(name: str) -> Any:
    return installed(f"transformers.models.{name}.modeling_{name}")


def _mimi() -> nn.Module:
    library = _library("mimi")
    config = library.MimiConfig(
        hidden_size=C,
        vector_quantization_hidden_dimension=D,
        codebook_dim=D,
        codebook_size=K,
        num_quantizers=Q,
    )
    return library.MimiSplitResidualVectorQuantizer(config)


def _encodec() -> nn.Module:
    library = _library("encodec")
    config = library.EncodecConfig(codebook_size=K, codebook_dim=D, hidden_size=D)
    module = library.EncodecResidualVectorQuantizer(config)
    module.layers, module.num_quantizers = module.layers[:Q], Q
    return module


def _xcodec() -> nn.Module:
    library = _library("xcodec")
    config = library.XcodecConfig(codebook_size=K, codebook_dim=D)
    module = library.XcodecResidualVectorQuantization(config)
    module.quantizers, module.num_quantizers = module.quantizers[:Q], Q
    return module


def _higgs() -> nn.Module:
    # Its module imports torchaudio, which no quantizer needs and which lacks a CPU build.
    stands_in = importlib.util.find_spec("torchaudio") is None
    if stands_in:
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    try:
        library = _library("higgs_audio_v2_tokenizer")
    finally:
        if stands_in:
            del sys.modules["torchaudio"]
    config = library.HiggsAudioV2TokenizerConfig(codebook_size=K, codebook_dim=D)
    config.codebook_dim = D
    module = library.HiggsAudioV2TokenizerResidualVectorQuantization(config)
    module.quantizers, module.num_quantizers = module.quantizers[:Q], Q
    return module


def _bandwidth_of_two_stages(module: Any) -> dict[str, Any]:
    return {"bandwidth": 2.5 * math.log2(K) * module.frame_rate / 1000}


CODECS = {
    "Mimi": Codec(_mimi, C, lambda module: {"num_quantizers": 2}),
    "EnCodec": Codec(_encodec, D, _bandwidth_of_two_stages),
    "X-Codec": Codec(_xcodec, D, _bandwidth_of_two_stages),
    "Higgs": Codec(_higgs, 1024, _bandwidth_of_two_stages),
}


@pytest.fixture(params=CODECS)
def codec(request):
    return CODECS[request.param]


@pytest.fixture
def module(codec):
    torch.manual_seed(0)
    module = codec.build()
    for name, tensor in module.state_dict().items():
        if "init" in name:
            tensor.fill_(1)
        elif "cluster" in name:
            tensor.uniform_(0.5, 3)
        else:
            tensor.normal_()
    return module.eval()


@pytest.fixture
def x(codec):
    return torch.randn(B, codec.channels, T, generator=torch.Generator().manual_seed(1))


def _codebooks(module):
    return [part for part in module.modules() if type(part).__name__.endswith("EuclideanCodebook")]


@torch.no_grad()
def test_codes_and_what_they_decode_to_stay(codec, module, x):
    options = codec.limited(module)
    expected, limited = module.encode(x), module.encode(x, **options)
    decoded = module.decode(
        expected.transpose(0, 1) if module.__module__.endswith("mimi") else expected
    )
    done = accelerate(module, quiet=True)
    assert done.left == []
    codes = module.encode(x)
    assert codes.shape == expected.shape == (Q, B, T)
    assert codes.dtype == expected.dtype
    assert torch.equal(codes, expected)
    assert len(limited) == 2
    assert torch.equal(module.encode(x, **options), limited)
    again = module.decode(codes.transpose(0, 1) if module.__module__.endswith("mimi") else codes)
    assert torch.equal(again, decoded)


@torch.no_grad()
def test_every_codebook_alone_is_exact(module):
    accelerate(module, quiet=True)
    for codebook in _codebooks(module):
        z = torch.randn(50, D) + 1000
        z[3] = torch.nan
        expected = functional.nearest_code(z, codebook.embed).indices
        assert torch.equal(codebook.quantize(z), expected)


@torch.no_grad()
def test_stages_that_only_search_run_in_one_call(codec, module, x, monkeypatch):
    accelerate(module, quiet=True)
    calls = []
    search = functional.nearest_code
    monkeypatch.setattr(
        functional, "nearest_code", lambda *given: calls.append(given) or search(*given)
    )
    module.encode(x)
    projects = codec is CODECS["Higgs"]
    assert len(calls) == (Q if projects else 0)


@torch.no_grad()
def test_half_precision_goes_stage_by_stage(codec, module, x):
    module = module.bfloat16()
    accelerate(module, quiet=True)
    codes = module.encode(x.bfloat16())
    assert codes.shape == (Q, B, T)
    judged = compare(module, x.bfloat16(), method="encode")
    assert sum(entry.vectors for entry in judged) == Q * B * T
    assert all(entry.theirs_nearer == 0 for entry in judged)


@torch.no_grad()
def test_changed_stages_are_seen(codec, module, x):
    accelerate(module, quiet=True)
    before = module.encode(x)
    module.load_state_dict(
        {
            name: -tensor if "embed" in name else tensor
            for name, tensor in module.state_dict().items()
        }
    )
    for codebook in _codebooks(module):
        if hasattr(codebook, "_embed"):
            codebook._embed = None  # transformers keeps the old codes otherwise
    after = module.encode(x)
    assert not torch.equal(after, before)
    accelerate(module, quiet=True).undo()
    assert torch.equal(module.encode(x), after)


@torch.no_grad()
def test_a_stage_of_another_class_is_called(codec, module, x):
    stages = next(part for part in module.modules() if isinstance(part, nn.ModuleList))
    kind = type(stages[0])

    class Reversed(kind):
        def encode(self, hidden_states: Tensor) -> Tensor:
            return K - 1 - super().encode(hidden_states)

    stages[0].__class__ = Reversed
    expected = module.encode(x)
    accelerate(module, quiet=True)
    assert torch.equal(module.encode(x), expected)


def test_mimi_misses_the_nearest_code_and_the_comparison_says_so():
    """transformers' Mimi measures by float32 norms and products, which cancel far from 0."""
    torch.manual_seed(0)
    module = _mimi().eval()
    for name, tensor in module.state_dict().items():
        if name.endswith("embed_sum"):
            tensor.normal_().add_(1000)
    x = torch.randn(1, C, 500)
    codebook = module.semantic_residual_vector_quantizer.layers[0].codebook
    z = torch.randn(500, D) + 1000
    judged = compare(codebook, z, method="quantize")
    (entry,) = judged
    assert (entry.name, entry.kind) == ("", "MimiEuclideanCodebook")
    assert entry.vectors == 500
    assert entry.differ == entry.ours_nearer > 0
    assert entry.theirs_nearer == 0
    assert entry.excess > 1e-3
    assert "theirs nearer" in str(judged).splitlines()[0]
    accelerate(module, quiet=True)
    assert compare(codebook, z, method="quantize") == judged  # it runs the model's own search
    assert torch.equal(codebook.quantize(z), functional.nearest_code(z, codebook.embed).indices)
    assert len(compare(module, (x,), method="encode")) == Q
