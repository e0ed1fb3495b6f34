"""accelerate() on the codecs of transformers, encodec, descript-audio-codec and moshi."""

import pytest
import torch
from other_libraries import (
    inner_module,
    residual_quantizer_of_dac,
    residual_quantizer_of_dac_in_transformers,
)
from same_results import (
    accelerated,
    assert_eval_is_as_before,
    assert_nearest,
    assert_same,
    assert_undone,
    count_of_misses,
    leaves,
    outcome,
)
from torch import Tensor, nn
from torch.nn import functional as nn_functional

from vqvae_fast import accelerate, compare

B, T, Q, K, D, C = 3, 100, 4, 32, 6, 10


def _encodec(monkeypatch, codebook_dim=None, **options) -> nn.Module:
    library = inner_module(monkeypatch, "encodec.quantization.core_vq")
    options = {"kmeans_init": False, **options}
    return library.ResidualVectorQuantization(
        num_quantizers=Q, dim=C, codebook_size=K, codebook_dim=codebook_dim, **options
    )


def _dac(monkeypatch) -> nn.Module:
    return residual_quantizer_of_dac(monkeypatch, C, Q, K, D)


def _dac_in_transformers(_) -> nn.Module:
    return residual_quantizer_of_dac_in_transformers(C, Q, K, D)


def _moshi(monkeypatch, **options) -> nn.Module:
    library = inner_module(monkeypatch, "moshi.quantization.core_vq")
    module = library.ResidualVectorQuantization(
        num_quantizers=Q, dim=C, codebook_size=K, codebook_offset=0, **options
    )
    for name, buffer in module.named_buffers():
        if name.endswith("_initialized"):
            buffer.fill_(1)
        elif name.endswith("cluster_usage"):
            buffer.uniform_(0.5, 3)
        else:
            buffer.normal_()
    return module


CODECS = {
    "encodec": _encodec,
    "encodec, projected": lambda monkeypatch: _encodec(monkeypatch, codebook_dim=D),
    "encodec, k-means": lambda monkeypatch: _encodec(monkeypatch, kmeans_init=True, kmeans_iters=3),
    "encodec, no expiry": lambda monkeypatch: _encodec(monkeypatch, threshold_ema_dead_code=0),
    "dac": _dac,
    "DAC in transformers": _dac_in_transformers,
    "moshi": _moshi,
}


@pytest.fixture(params=CODECS)
def name(request):
    return request.param


@pytest.fixture
def module(name, monkeypatch):
    torch.manual_seed(0)
    return CODECS[name](monkeypatch)


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(B, C, T)


@pytest.mark.parametrize("gradients", [False, True])
def test_eval_is_as_before(module, x, gradients):
    with torch.set_grad_enabled(gradients):
        assert_eval_is_as_before(module, x)


def test_training_steps_are_as_before(module, x):
    module.train()
    ours = accelerated(module)
    for _ in range(3):
        assert_same(outcome(ours, x), outcome(module, x))
    ours.eval()
    module.eval()
    assert_same(outcome(ours, x), outcome(module, x))


@pytest.mark.parametrize("number", [None, 1, 3])
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_encoding_is_as_before(name, module, x, number, training):
    if "encodec" in name or name == "moshi":
        arguments, method = (x, number), "encode"
    else:
        arguments, method = (x, number), "forward"
    module.train(training)
    ours = accelerated(module)
    for _ in range(2):
        found, expected = (outcome(part, *arguments, method=method) for part in (ours, module))
        assert_same(found, expected)


@torch.no_grad()
def test_parts_of_latents_are_as_before(name, module):
    if "dac" not in name.lower():
        pytest.skip("it has no from_latents")
    ours = accelerated(module.eval())
    latents = torch.randn(B, Q * D, T)
    assert_same(
        outcome(ours, latents, method="from_latents"),
        outcome(module, latents, method="from_latents"),
    )


@torch.no_grad()
def test_codes_are_the_nearest_where_the_original_misses_them(name, module):
    if "projected" in name or "k-means" in name:
        pytest.skip("as without it")
    module.eval()
    if "dac" in name.lower():
        stage = module.quantizers[0]
        stage.codebook.weight.normal_(mean=2000.0)
        weight = stage.codebook.weight
        latents = weight[torch.randint(K, (B * 100,))] + 0.9 * torch.randn(B * 100, D)
        latents = latents.view(B, 100, D).transpose(1, 2)
        ours = accelerated(module).quantizers[0]
        rows = nn_functional.normalize(latents.transpose(1, 2), dim=-1)
        codebook = nn_functional.normalize(weight)
        found, theirs = ours.decode_latents(latents)[1], stage.decode_latents(latents)[1]
        judged = compare(stage, latents, method="decode_latents")
    else:
        stage = module.layers[0]._codebook
        for part in ("embed", "embedding_sum"):
            if hasattr(stage, part):
                getattr(stage, part).normal_(mean=2000.0)
        if hasattr(stage, "cluster_usage"):  # by which moshi divides
            stage.cluster_usage.fill_(1)
        codebook = stage.embed if "encodec" in name else stage.embedding
        rows = codebook[torch.randint(K, (B * 100,))] + 0.9 * torch.randn(B * 100, C)
        ours = accelerated(module).layers[0]._codebook
        found, theirs = ours.encode(rows), stage.encode(rows)
        judged = compare(stage, rows, method="encode")
        whole = accelerated(module)
        assert torch.equal(whole.encode(rows.t()[None], 1)[0, 0], found)
    assert_nearest(found, rows, codebook)
    assert count_of_misses(theirs, rows, codebook) > 0
    assert judged[0].ours_nearer > 0
    assert judged[0].theirs_nearer == 0


@pytest.mark.parametrize("training", [False, True])
def test_empty_batches_are_as_before(name, module, x, training):
    module.train(training)
    ours = accelerated(module)
    try:
        expected = outcome(module, x[:0])
    except (RuntimeError, ZeroDivisionError):
        pytest.skip("the original cannot")
    assert_same(outcome(ours, x[:0]), expected)


@torch.no_grad()
def test_rows_with_nan_are_as_before_in_eval(name, module, x):
    if "k-means" in name:
        pytest.skip("its first batch must be without")
    module.eval()
    x[1, 2, 3] = torch.nan
    assert_same(outcome(accelerated(module), x), outcome(module, x))


@pytest.mark.parametrize("training", [False, True])
def test_sixteen_bits_keep_their_dtypes(name, module, x, training):
    module.train(training).bfloat16()
    ours = accelerated(module)
    try:
        expected = list(leaves(module(x.bfloat16())))
    except RuntimeError:
        pytest.skip("the original cannot")
    found = list(leaves(ours(x.bfloat16())))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, Tensor):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)


def test_training_under_autocast_keeps_dtypes(module, x):
    ours = accelerated(module.train())
    with torch.autocast("cpu", torch.bfloat16):
        expected = list(leaves(module(x)))
        found = list(leaves(ours(x)))
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, Tensor):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)


def test_undo(module, x):
    assert_undone(module.eval(), x)
    assert_undone(module.train(), x)


def test_a_subclass_with_its_own_search_is_left(name, module):
    parts = module.quantizers if hasattr(module, "quantizers") else module.layers
    part = parts[0] if hasattr(module, "quantizers") else parts[0]._codebook
    searches = [
        method for method in ("decode_latents", "_quantize", "quantize") if hasattr(part, method)
    ]
    part.__class__ = type("Mine", (type(part),), {searches[0]: lambda self, *_: None})
    done = accelerate(module, quiet=True)
    assert [place.kind for place in done.left] == ["Mine"]
    assert done.left[0].about == f"it has its own {searches[0]}"


def test_moshi_keeps_the_codes_that_it_has_computed(monkeypatch, x):
    module = _moshi(monkeypatch).eval()
    ours = accelerated(module)
    with torch.no_grad():
        assert_same(outcome(ours, x, 2, method="encode"), outcome(module, x, 2, method="encode"))
    for part in (ours, module):
        cached = [stage._codebook._embedding is not None for stage in part.layers]
        assert cached == [True, True, False, False]
        assert "_embedding" not in "".join(part.state_dict())


def test_codes_of_moshi_that_inference_mode_has_made(monkeypatch, x):
    module = _moshi(monkeypatch).eval()
    ours = accelerated(module)
    with torch.inference_mode():
        found, expected = ours.encode(x), module.encode(x)
    assert torch.equal(found, expected)
    with torch.no_grad():
        assert torch.equal(ours.encode(x), expected)


def test_dac_leaves_codes_that_are_elsewhere_to_the_original(x):
    module = _dac_in_transformers(None).eval()
    ours = accelerated(module)
    seen = []

    class Hook:
        def pre_forward(self, module, *arguments):
            seen.append("before")

        def post_forward(self, module, output):
            seen.append("after")

    ours.quantizers[0].codebook._hf_hook = Hook()
    with torch.no_grad():
        assert_same(list(leaves(ours(x))), list(leaves(module(x))))
    assert seen == ["before", "after"]
