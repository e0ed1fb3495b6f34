"""Inductor itself, not a stand-in for it, on inputs whose sizes change between calls.

A model of many quantizers is one compilation: each one here lies between two convolutions, or
between two layers of a sequence, as in a codec.
"""

import copy
import itertools
import re
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._inductor.utils import run_and_get_code

from vqvae_fast import functional
from vqvae_fast.dtypes import common_float
from vqvae_fast.nn import (
    GroupedResidualVQ,
    RandomProjectionQuantizer,
    ResidualSimVQ,
    ResidualVQ,
    SimVQ,
    SplitResidualVQ,
    VectorQuantize,
    VectorQuantizer,
)

DIM, CODES = 8, 16
SIZES = {"dim": DIM, "codebook_size": CODES}
MAPS = {**SIZES, "accept_image_fmap": True}
STAGES = {**MAPS, "num_quantizers": 2}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    # The compiled step draws its random numbers as the eager one does. A graph that an earlier run
    # has compiled is compiled again: what is tested is the compilation.
    settings = {"fallback_random": True, "fx_graph_cache": False}
    with (
        torch._inductor.config.patch(settings),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        yield


class Masked(nn.Module):
    """A quantizer of feature maps that leaves some places out."""

    def __init__(self, quantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z):
        return self.quantizer(z, mask=z[:, 0] > -0.5)


class Functional(nn.Module):
    """The functions of the package on a codebook that learns."""

    def __init__(self, call):
        super().__init__()
        self.codebook, self.call = nn.Parameter(torch.randn(CODES, DIM)), call

    def forward(self, z):
        return self.call(z, self.codebook)


def quantize(z, codebook):
    result = functional.quantize(z, codebook, channel_first=True)
    return result.quantized, result.indices, result.loss


def nearest(metric):
    def call(z, codebook):
        last = z.movedim(1, -1)
        indices, distances = functional.nearest_code(last, codebook, metric=metric)
        sums, counts = functional.segment_sum(last, indices, CODES)
        means = sums / counts.clamp(min=1)[:, None]
        return z + means[indices].movedim(-1, 1), indices, distances.mean()

    return call


def residual(z, codebook):
    books = torch.stack([codebook, codebook / 2])
    indices, quantized = functional.residual_nearest_code(z.movedim(1, -1), books)
    return z + quantized.movedim(-1, 1), indices, quantized.mean()


class Transposed(nn.Module):
    """A quantizer of [B, D, N] for [B, N, D]."""

    def __init__(self, quantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x):
        quantized, *rest = self.quantizer(x.transpose(1, 2))
        return quantized.transpose(1, 2), *rest


class Labels(nn.Module):
    """A quantizer that gives indices alone, beside the vectors."""

    def __init__(self):
        super().__init__()
        self.quantizer = RandomProjectionQuantizer(**SIZES, codebook_dim=4, num_codebooks=2)

    def forward(self, x):
        return x, self.quantizer(x), x.new_zeros(())


class Reference(nn.Module):
    """VectorQuantizer with its results in the others' order."""

    def __init__(self, **options):
        super().__init__()
        self.quantizer = VectorQuantizer(CODES, DIM, **options)

    def forward(self, z):
        loss, quantized, perplexity, _, indices = self.quantizer(z)
        return quantized, (indices, perplexity), loss


class Codec(nn.Module):
    """Layers with a quantizer between each two; gives the output, all indices, the loss."""

    def __init__(self, first, between, last, quantizers):
        super().__init__()
        self.first, self.last = first(), last()
        self.quantizers = nn.ModuleList(make() for make in quantizers)
        self.between = nn.ModuleList(between() for _ in quantizers)

    def forward(self, x):
        x, found, total = self.first(x), [], 0.0
        for quantizer, layer in zip(self.quantizers, self.between, strict=True):
            quantized, indices, loss = quantizer(x)[:3]
            x, total = layer(quantized), total + loss.sum()
            found.append(indices)
        return self.last(x), found, total


def of_maps(quantizers):
    return Codec(
        lambda: nn.Conv2d(3, DIM, 4, 4),
        lambda: nn.Conv2d(DIM, DIM, 1),
        lambda: nn.ConvTranspose2d(DIM, 3, 4, 4),
        quantizers,
    )


def of_sequences(quantizers):
    return Codec(
        lambda: nn.Linear(3, DIM),
        lambda: nn.Linear(DIM, DIM),
        lambda: nn.Linear(DIM, 3),
        quantizers,
    )


MODELS = {
    "vector_quantize": lambda: of_maps(
        [
            lambda: VectorQuantize(**MAPS, learnable_codebook=True, ema_update=False),
            lambda: VectorQuantize(
                **MAPS,
                use_cosine_sim=True,
                rotation_trick=False,
                heads=2,
                codebook_dim=4,
                separate_codebook_per_head=True,
            ),
            lambda: Masked(VectorQuantize(**MAPS, threshold_ema_dead_code=1)),
        ]
    ),
    "vector_quantizer": lambda: of_maps(
        [
            lambda: Reference(dead_code_threshold=1.0),
            lambda: Reference(learning="ema", dead_code_threshold=1.0),
            lambda: Functional(quantize),
            lambda: Functional(nearest("euclidean")),
            lambda: Functional(nearest("cosine")),
            lambda: Functional(nearest("dot")),
            lambda: Functional(residual),
        ]
    ),
    "residual": lambda: of_maps(
        [
            lambda: ResidualVQ(**STAGES),
            lambda: ResidualVQ(**STAGES, quantize_dropout=True),
            lambda: GroupedResidualVQ(**MAPS, groups=2, num_quantizers=1),
            lambda: SimVQ(**SIZES, channel_first=True),
            lambda: ResidualSimVQ(**SIZES, num_quantizers=2, channel_first=True),
        ]
    ),
    "sequences": lambda: of_sequences(
        [
            lambda: VectorQuantize(**SIZES),
            Labels,
            lambda: Transposed(
                SplitResidualVQ(
                    **SIZES, codebook_dim=4, num_quantizers=2, num_semantic_quantizers=1
                )
            ),
        ]
    ),
}


def shapes(name):
    """Sizes that differ in every dimension; the convolution rounds the odd ones down."""
    return [(2, 9, 3), (3, 7, 3)] if name == "sequences" else [(2, 3, 12, 16), (3, 3, 23, 13)]


def assert_as_eager(model, inputs, dynamic=None):
    """The compiled model, its gradients and its state beside the eager one's, call by call."""
    other = copy.deepcopy(model)
    compiled = torch.compile(other, fullgraph=True, dynamic=dynamic)
    for step, x in enumerate(inputs):
        results = []
        for function in (model, compiled):
            leaf = x.clone().requires_grad_(model.training)
            torch.manual_seed(step)
            output, found, loss = function(leaf)
            if model.training:
                (output.square().sum() + loss).backward()
            results.append((output, found, loss, leaf.grad))
        torch.testing.assert_close(*results)
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad)
        torch.testing.assert_close(model.state_dict(), other.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODELS)
def test_sizes_that_change(name, training):
    model = MODELS[name]().double().train(training)
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes(name)]
    with torch.set_grad_enabled(training):
        assert_as_eager(model, inputs, dynamic=True)


@pytest.mark.slow
def test_a_size_is_found_to_change():
    """The first call compiles for its size alone, the second for any width."""
    inputs = [torch.randn(2, 3, 8, width, dtype=torch.float64) for width in (32, 40, 49)]
    assert_as_eager(of_maps([lambda: VectorQuantize(**MAPS)]).double(), inputs)


def test_the_search_takes_a_feature_map_as_it_lies():
    """Around convolutions Inductor lays maps channels last, and the search takes any strides."""
    model = of_maps([lambda: VectorQuantize(**MAPS)]).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        _, (code,) = run_and_get_code(compiled, torch.randn(2, 3, 12, 16))
    calls = re.findall(r"vqvae_fast\.(?:quantize|nearest_code)\.default\((\w+)", code)
    assert calls == ["reinterpret_tensor"]


def test_import_does_not_load_the_compiler():
    command = "import sys, vqvae_fast.nn; assert 'torch._inductor.ir' not in sys.modules"
    subprocess.run([sys.executable, "-c", command], check=True)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["vector_quantize", "vector_quantizer", "residual"])
def test_export_for_any_size(name):
    model = MODELS[name]().eval()
    batch, height, width = (torch.export.Dim(dim, min=2, max=64) for dim in ("b", "h", "w"))
    sizes = {"x": {0: batch, 2: 4 * height, 3: 4 * width}}
    program = torch.export.export(model, (torch.randn(2, 3, 12, 16),), dynamic_shapes=sizes)
    x = torch.randn(3, 3, 8, 20)
    torch.testing.assert_close(program.module()(x), model(x))
    # torch.compile refuses this node.
    parts = [
        part for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule)
    ]
    targets = [str(node.target) for part in parts for node in part.graph.nodes]
    assert "aten.convolution.default" in targets or "aten.conv2d.default" in targets
    assert "aten.promote_types.default" not in targets


@pytest.mark.parametrize("dtypes", [*itertools.product(FLOATS, FLOATS)])
def test_the_common_dtype_is_that_of_torch(dtypes):
    assert common_float(*dtypes) == torch.promote_types(*dtypes)
