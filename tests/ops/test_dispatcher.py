"""What torch does with the ops: opcheck, compile, autocast, export, meta tensors, transforms."""

import itertools
import types

import pytest
import torch
import torch._dynamo.utils

import vqvae_fast
from vqvae_fast.backends import choice, dispatch
from vqvae_fast.dtypes import distance_dtype

pytestmark = pytest.mark.interpreted


def samples(requires_grad, dtype=torch.float32):
    """Arguments of nearest_code and quantize."""
    shapes = [((9, 5), (7, 5)), ((2, 3, 5), (7, 5)), ((5,), (7, 5)), ((2, 3, 5), (2, 7, 5))]
    for z_shape, codebook_shape in [*shapes, ((0, 5), (7, 5))]:
        yield (
            torch.randn(z_shape).to(dtype).requires_grad_(requires_grad),
            torch.randn(codebook_shape).to(dtype).requires_grad_(requires_grad),
        )
    feature_map = torch.randn(2, 5, 3, 4).to(dtype).requires_grad_(requires_grad)
    yield feature_map.movedim(1, -1), torch.randn(7, 5).to(dtype)


# aot_dispatch with gradients is not for the bare ops: their gradient is the autograd Function's.
WITHOUT_GRADIENT = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.quick(4)
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("op", ["nearest_code", "quantize"])
def test_opcheck_of_searches(op, requires_grad, dtype):
    tests = WITHOUT_GRADIENT if requires_grad else (*WITHOUT_GRADIENT, "test_aot_dispatch_dynamic")
    for arguments in samples(requires_grad, dtype):
        result = torch.library.opcheck(
            getattr(torch.ops.vqvae_fast, op).default, arguments, test_utils=tests
        )
        assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_of_a_search_by_a_named_backend(requires_grad, dtype):
    tests = WITHOUT_GRADIENT if requires_grad else (*WITHOUT_GRADIENT, "test_aot_dispatch_dynamic")
    for arguments in samples(requires_grad, dtype):
        result = torch.library.opcheck(
            torch.ops.vqvae_fast.nearest_code.on, (*arguments, "reference"), test_utils=tests
        )
        assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_of_residual_nearest_code(requires_grad, dtype):
    tests = WITHOUT_GRADIENT if requires_grad else (*WITHOUT_GRADIENT, "test_aot_dispatch_dynamic")
    codebooks = torch.randn(3, 7, 5).to(dtype).requires_grad_(requires_grad)
    feature_map = torch.randn(2, 5, 3, 4).movedim(1, -1)
    for z in (torch.randn(9, 5), torch.randn(2, 3, 5), torch.randn(5), feature_map):
        arguments = (z.to(dtype).requires_grad_(requires_grad), codebooks)
        result = torch.library.opcheck(
            torch.ops.vqvae_fast.residual_nearest_code.default, arguments, test_utils=tests
        )
        assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_of_segment_sum(requires_grad, dtype):
    tests = WITHOUT_GRADIENT if requires_grad else (*WITHOUT_GRADIENT, "test_aot_dispatch_dynamic")
    for shape in [(9, 5), (2, 3, 5), (5,), (0, 5)]:
        src = torch.randn(shape).to(dtype).requires_grad_(requires_grad)
        indices = torch.randint(-1, 4, shape[:-1])
        result = torch.library.opcheck(
            torch.ops.vqvae_fast.segment_sum.default, (src, indices, 4), test_utils=tests
        )
        assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_of_quantize_backward(requires_grad, dtype):
    tests = WITHOUT_GRADIENT if requires_grad else (*WITHOUT_GRADIENT, "test_aot_dispatch_dynamic")
    for z, codebook in samples(requires_grad, dtype):
        grad = torch.randn(()).to(distance_dtype(dtype))
        indices = torch.randint(codebook.shape[-2], z.shape[:-1])
        arguments = (torch.randn_like(z), grad, z, codebook, indices, 0.25, 1.0)
        result = torch.library.opcheck(
            torch.ops.vqvae_fast.quantize_backward.default, arguments, test_utils=tests
        )
        assert set(result.values()) == {"SUCCESS"}


@pytest.mark.quick(2)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_of_reads_of_codes(requires_grad, dtype):
    tests = WITHOUT_GRADIENT if requires_grad else (*WITHOUT_GRADIENT, "test_aot_dispatch_dynamic")
    for z, codebook in samples(requires_grad, dtype):
        indices = torch.randint(codebook.shape[-2], z.shape[:-1])
        for op, arguments in (("take_codes", (codebook, indices)), ("copy_of_codes", (codebook,))):
            op = getattr(torch.ops.vqvae_fast, op).default
            result = torch.library.opcheck(op, arguments, test_utils=tests)
            assert set(result.values()) == {"SUCCESS"}


def layer(z, codebook, channel_first=False):
    got = vqvae_fast.quantize(z * 2, codebook, channel_first=channel_first)
    return got.quantized + 1, got.indices, got.loss, got.distances


def run(function, *arguments, **options):
    z, codebook, *rest = arguments
    z, codebook = z.clone().requires_grad_(), codebook.clone().requires_grad_()
    quantized, indices, loss, distances = function(z, codebook, *rest, **options)
    grads = torch.autograd.grad((quantized * quantized).sum() + loss, (z, codebook))
    return quantized, indices, loss, distances, *grads


# Dynamo itself makes an instance of the autograd Function while it traces one.
dynamo_warns = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@dynamo_warns
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize(
    ("backend", "channel_first"), [("aot_eager", False), ("aot_eager", True), ("inductor", True)]
)
def test_compiled_in_one_graph(backend, channel_first):
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend=backend, fullgraph=True, dynamic=False)
    z = torch.randn(2, 5, 3, 4) if channel_first else torch.randn(9, 5)
    codebook = torch.randn(7, 5)
    for mine, theirs in zip(
        run(compiled, z, codebook, channel_first=channel_first),
        run(layer, z, codebook, channel_first=channel_first),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@dynamo_warns
def test_compiled_with_dynamic_shapes_compiles_once():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows, codes in itertools.product((9, 4, 30), (7, 12)):
        z, codebook = torch.randn(rows, 5), torch.randn(codes, 5)
        for mine, theirs in zip(run(compiled, z, codebook), run(layer, z, codebook), strict=True):
            torch.testing.assert_close(mine, theirs)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_compiled_searches_and_sums():
    torch._dynamo.reset()

    def statistics(z, codebook):
        indices, distances = vqvae_fast.nearest_code(z, codebook)
        sums, counts = vqvae_fast.segment_sum(z, indices, codebook.shape[0])
        of_books = vqvae_fast.functional.code_statistics(z[None], indices[None], codebook[None])
        return indices, distances, sums, counts, *of_books

    compiled = torch.compile(statistics, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (9, 30):
        z, codebook = torch.randn(rows, 5), torch.randn(7, 5)
        for mine, theirs in zip(compiled(z, codebook), statistics(z, codebook), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_residual_stages(dynamic):
    torch._dynamo.reset()

    def stages(z, codebooks):
        indices, quantized = vqvae_fast.residual_nearest_code(z * 2, codebooks)
        return indices, quantized + 1

    compiled = torch.compile(stages, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for rows in (9, 30):
        z, codebooks = torch.randn(rows, 5), torch.randn(3, 7, 5)
        for mine, theirs in zip(compiled(z, codebooks), stages(z, codebooks), strict=True):
            assert torch.equal(mine, theirs)


def test_exported():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.codebook = torch.nn.Parameter(torch.randn(7, 5))

        def forward(self, z):
            return tuple(vqvae_fast.quantize(z, self.codebook))

    module = Layer()
    batch = torch.export.Dim("batch", min=2, max=1000)
    program = torch.export.export(module, (torch.randn(4, 5),), dynamic_shapes=({0: batch},))
    assert any("vqvae_fast" in str(node.target) for node in program.graph.nodes)
    for rows in (2, 4, 33):
        z = torch.randn(rows, 5)
        for mine, theirs in zip(program.module()(z), module(z), strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_autocast_searches_in_float32(narrow):
    """Whatever mixture autocast makes of the inputs, the search is the exact one in float32."""
    z, codebook = torch.randn(40, 5).to(narrow), torch.randn(60, 5)
    wanted = vqvae_fast.quantize(z.float(), codebook)
    with torch.autocast("cpu", dtype=narrow):
        got = vqvae_fast.quantize(z, codebook)
        found = vqvae_fast.nearest_code(z, codebook)
        linear = torch.nn.functional.linear(torch.randn(3, 5), torch.randn(5, 5))
        assert linear.dtype == narrow  # autocast is at work
        assert vqvae_fast.quantize(linear, codebook).quantized.dtype == torch.float32
    assert torch.equal(got.indices, wanted.indices)
    assert torch.equal(found.indices, wanted.indices)
    assert torch.equal(got.quantized, wanted.quantized)
    assert torch.equal(got.loss, wanted.loss)


def test_autocast_has_the_gradient():
    z, codebook = torch.randn(40, 5, requires_grad=True), torch.randn(60, 5, requires_grad=True)
    weight = torch.randn(5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = vqvae_fast.quantize(torch.nn.functional.linear(z, weight), codebook)
    grads = torch.autograd.grad(got.loss + got.quantized.sum(), (z, codebook))
    assert all(grad.abs().max() > 0 for grad in grads)
    assert all(grad.dtype == torch.float32 for grad in grads)


def test_autocast_leaves_float64_alone():
    z, codebook = torch.randn(40, 5).double(), torch.randn(60, 5).double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert vqvae_fast.quantize(z, codebook).quantized.dtype == torch.float64


def test_meta_tensors():
    z, codebook = torch.empty(2, 3, 5, device="meta"), torch.empty(7, 5, device="meta")
    got = vqvae_fast.quantize(z, codebook)
    assert got.quantized.shape == (2, 3, 5)
    assert got.indices.shape == got.distances.shape == (2, 3)
    assert got.loss.shape == ()
    assert all(part.device.type == "meta" for part in got)
    assert vqvae_fast.nearest_code(z, codebook).indices.dtype == torch.int64
    sums, counts = vqvae_fast.segment_sum(z, got.indices, 7)
    assert sums.shape == (7, 5)
    assert counts.shape == (7,)


def test_inference_mode():
    z, codebook = torch.randn(40, 5), torch.randn(60, 5, requires_grad=True)
    wanted = vqvae_fast.quantize(z, codebook)
    with torch.inference_mode():
        got = vqvae_fast.quantize(z, codebook)
    assert torch.equal(got.quantized, wanted.quantized)
    assert torch.equal(got.indices, wanted.indices)


@pytest.mark.parametrize(
    "call",
    [
        lambda t: dispatch.chosen_kernel("nearest_code")(t, t),
        lambda t: dispatch._nearest_code_on(t, t, "reference"),
    ],
    ids=["chosen", "named"],
)
def test_kernels_run_with_their_tensors_device_as_the_current_one(call, monkeypatch):
    """Triton launches on the current device: with cuda:1's pointers on cuda:0 that is a fault."""
    current = [0]

    def exchange(index):
        previous, current[0] = current[0], index if index >= 0 else current[0]
        return previous

    seen = []
    served = types.SimpleNamespace(nearest_code=lambda *_: seen.append(current[0]))
    monkeypatch.setattr(torch.cuda, "_exchange_device", exchange)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", exchange)
    monkeypatch.setattr(choice, "kernels", lambda device, name=None: served)
    on_second = types.SimpleNamespace(
        is_cuda=True, get_device=lambda: 1, device=torch.device("cuda", 1)
    )
    call(on_second)
    call(torch.zeros(2, 3))
    assert (seen, current) == ([1, 0], [0])
