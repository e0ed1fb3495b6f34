import inspect

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vqvae_fast.nn import LazyOneHot, VectorQuantizer

STATEFUL = [
    {"dead_code_threshold": 1.0},
    {"learning": "ema"},
    {"learning": "ema", "dead_code_threshold": 1.0, "kmeans_init": True},
]


def readable(z, codebook, commitment, codebook_weight):
    """The formulas of the article: loss, straight-through output, indices."""
    rows = z.permute(0, 2, 3, 1)
    distance = (rows.detach()[..., None, :] - codebook.detach()).double().square().sum(-1)
    indices = distance.argmin(-1)
    q = codebook[indices]
    loss = commitment * (rows - q.detach()).square().mean()
    loss = loss + codebook_weight * (rows.detach() - q).square().mean()
    return loss, (rows + (q - rows).detach()).permute(0, 3, 1, 2), indices


@pytest.mark.parametrize("legacy", [False, True])
def test_loss_output_and_gradients_follow_the_formula(legacy):
    beta = 0.3
    quantizer = VectorQuantizer(20, 5, beta, legacy)
    z = torch.randn(3, 5, 4, 6)
    ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    codebook = quantizer.codebook.detach().clone().requires_grad_()
    upstream = torch.randn_like(z)
    loss, z_q, perplexity, encodings, indices = quantizer(ours)
    weights = (1.0, beta) if legacy else (beta, 1.0)
    expected_loss, expected_z_q, expected_indices = readable(theirs, codebook, *weights)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(z_q, expected_z_q)
    assert torch.equal(indices, expected_indices.reshape(-1, 1))
    one_hot = torch.nn.functional.one_hot(indices[:, 0], 20).float()
    assert torch.equal(encodings.dense(), one_hot)
    share = one_hot.mean(0)
    torch.testing.assert_close(perplexity, torch.exp(-(share * torch.log(share + 1e-10)).sum()))
    (2 * loss + (z_q * upstream).sum()).backward()
    (2 * expected_loss + (expected_z_q * upstream).sum()).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(quantizer.codebook.grad, codebook.grad)


def test_drop_in_for_the_reference_class():
    assert list(inspect.signature(VectorQuantizer).parameters)[:3] == ["n_e", "e_dim", "beta"]
    quantizer = VectorQuantizer(512, 64, 0.25)
    assert (quantizer.n_e, quantizer.e_dim, quantizer.beta) == (512, 64, 0.25)
    assert list(quantizer.state_dict()) == ["embedding.weight"]
    assert quantizer.codebook is quantizer.embedding.weight
    assert quantizer.codebook.abs().max() <= 1 / 512
    results = quantizer(torch.randn(2, 64, 8, 8))
    loss, z_q, perplexity, encodings, indices = results
    assert loss.shape == perplexity.shape == ()
    assert z_q.shape == (2, 64, 8, 8)
    assert isinstance(encodings, LazyOneHot)
    assert indices.shape == (128, 1)
    assert indices.dtype == torch.int64
    assert encodings.materialized is None


@pytest.mark.parametrize("learning", ["gradient", "ema"])
@pytest.mark.parametrize(
    "layout",
    [
        lambda z: z.contiguous(memory_format=torch.channels_last),
        lambda z: z.transpose(2, 3).contiguous().transpose(2, 3),
        lambda z: torch.cat([z, z], dim=3)[..., ::2].copy_(z),
        lambda z: z.flip(0).contiguous().flip(0),
    ],
)
def test_any_layout_gives_the_same(layout, learning):
    plain = VectorQuantizer(9, 4, learning=learning)
    other = VectorQuantizer(9, 4, learning=learning)
    other.load_state_dict(plain.state_dict())
    z = torch.randn(2, 4, 3, 6)
    expected = plain(z)
    arranged = layout(z)
    result = other(arranged)
    assert torch.equal(result[1], expected[1])
    assert torch.equal(result[4], expected[4])
    torch.testing.assert_close(result[0], expected[0])
    torch.testing.assert_close(other.codebook, plain.codebook)


class LatentsMade(TorchDispatchMode):
    """Names of the operations that return as many elements as there are latents, no views."""

    def __init__(self, elements: int):
        super().__init__()
        self.elements, self.names = elements, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = result if isinstance(result, (tuple, list)) else (result,)
        made = any(isinstance(t, torch.Tensor) and t.numel() == self.elements for t in tensors)
        if made and not func.is_view:
            self.names.append(str(func))
        return result


@pytest.mark.parametrize("options", [{}, *STATEFUL])
def test_no_copy_of_the_latents(options):
    """Channel-first memory goes to the search as it is, and comes back in the same layout."""
    quantizer = VectorQuantizer(9, 5, **options)
    z = torch.randn(2, 5, 7, 11)
    quantizer(z)  # k-means collects a copy of its samples, once
    with LatentsMade(z.numel()) as made:
        z_q = quantizer(z)[1]
    assert made.names == ["vqvae_fast.quantize.default"]
    assert z_q.stride() == z.stride()
    with LatentsMade(z.numel()) as made:
        z.movedim(1, -1).contiguous()
    assert made.names, "a copy is not seen"


@pytest.mark.parametrize("options", STATEFUL)
def test_eval_changes_no_state(options):
    quantizer = VectorQuantizer(9, 4, **options)
    for _ in range(3):
        quantizer(torch.randn(2, 4, 3, 6))
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.eval()
    z = torch.randn(2, 4, 3, 6, requires_grad=True)
    generator = torch.get_rng_state()
    loss, z_q, *_ = quantizer(z)
    (loss + z_q.sum()).backward()
    assert z.grad.any()
    assert torch.equal(torch.get_rng_state(), generator)
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name]), name
    quantizer.train()(z)
    after = quantizer.state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("options", [{}, *STATEFUL])
@pytest.mark.parametrize("shape", [(0, 4, 3, 6), (2, 4, 0, 6)])
def test_empty_batch(options, shape):
    quantizer = VectorQuantizer(9, 4, **options)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    z = torch.randn(shape, requires_grad=True)
    loss, z_q, perplexity, encodings, indices = quantizer(z)
    (loss + z_q.sum()).backward()
    assert loss == 0
    assert perplexity == 1
    assert z_q.shape == z.grad.shape == shape
    assert encodings.shape == (0, 9)
    assert indices.shape == (0, 1)
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("options", [{}, *STATEFUL])
def test_training_is_repeatable(options):
    z = torch.randn(4, 2, 4, 3, 6)
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        quantizer = VectorQuantizer(9, 4, **options)
        optimizers = [torch.optim.Adam([p], lr=0.01) for p in quantizer.parameters()]
        for batch in z:
            loss = quantizer(batch)[0]
            for optimizer in optimizers:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        states.append(quantizer.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.parametrize("options", [{}, *STATEFUL])
def test_autocast_searches_in_float32(options):
    """A search in bfloat16 would mistake these codes, which differ by less than it resolves."""
    quantizer = VectorQuantizer(64, 2, **options).eval()
    codes = 1 + torch.rand(64, 2) * 0.01
    quantizer.set_codebook(codes)
    z = (1 + torch.rand(2, 2, 8, 8) * 0.01).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, z_q, _, _, indices = quantizer(z)
    rows = z.detach().movedim(1, -1).reshape(-1, 2)
    expected = (rows[:, None].double() - codes.double()).square().sum(-1).argmin(1)
    assert torch.equal(indices[:, 0], expected)
    assert loss.dtype == torch.float32
    assert z_q.dtype == torch.bfloat16
    loss.backward()
    assert z.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("options", STATEFUL)
def test_autocast_keeps_the_state_in_float32(options):
    quantizer = VectorQuantizer(8, 3, **options)
    layer = torch.nn.Conv2d(1, 3, 1)
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = layer(torch.randn(2, 1, 4, 4))
            assert z.dtype == torch.bfloat16
            loss = quantizer(z)[0]
        loss.backward()
    for name, value in quantizer.state_dict().items():
        assert value.dtype in (torch.float32, torch.bool), name
    assert layer.weight.grad.any()


def test_float32_quantizer_in_a_bfloat16_model():
    quantizer = VectorQuantizer(8, 3, learning="ema")
    z = torch.randn(2, 3, 4, 4).bfloat16().requires_grad_()
    exact = VectorQuantizer(8, 3, learning="ema")
    exact.load_state_dict(quantizer.state_dict())
    loss, z_q, *_ = quantizer(z)
    expected_loss, expected_z_q, *_ = exact(z.detach().float())
    assert torch.equal(loss, expected_loss)
    assert torch.equal(z_q, expected_z_q.bfloat16())
    (loss + z_q.sum()).backward()
    assert z.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("options", [{}, *STATEFUL])
def test_bfloat16_module(options):
    quantizer = VectorQuantizer(8, 3, **options).bfloat16()
    z = torch.randn(4, 3, 4, 4).bfloat16().requires_grad_()
    for _ in range(3):
        loss, z_q, *_ = quantizer(z)
        (loss + z_q.float().sum()).backward()
    assert z_q.dtype == quantizer.codebook.dtype == torch.bfloat16
    assert loss.dtype == torch.float32


def test_encode_and_decode():
    quantizer = VectorQuantizer(9, 4)
    z = torch.randn(2, 4, 3, 6)
    indices = quantizer.encode(z)
    _, z_q, _, _, flat = quantizer(z)
    assert torch.equal(indices.view(-1, 1), flat)
    assert torch.equal(quantizer.decode(indices), z_q)


def test_set_codebook_rejects_another_shape():
    with pytest.raises(ValueError, match=r"codes must be \[9, 4\], got \[4, 9\]"):
        VectorQuantizer(9, 4).set_codebook(torch.zeros(4, 9))


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (4, 4, 4), (1, 2, 4, 4, 4)])
def test_wrong_feature_map(shape):
    quantizer = VectorQuantizer(9, 4, learning="ema")
    before = quantizer.codebook.clone()
    expected = r"z must be \[B, e_dim=4, H, W\], got \[" + ", ".join(map(str, shape))
    for call in (quantizer, quantizer.encode):
        with pytest.raises(ValueError, match=expected):
            call(torch.zeros(shape))
    assert torch.equal(quantizer.codebook, before)


@pytest.mark.parametrize("z", [torch.zeros(1, 4, 2, 2, dtype=torch.int64), None, [1.0]])
def test_feature_maps_are_tensors_of_floats(z):
    with pytest.raises(TypeError, match=r"z must be a tensor of floats, got (torch|NoneType|list)"):
        VectorQuantizer(9, 4)(z)


@pytest.mark.parametrize("method", ["__call__", "encode"])
def test_wrong_dtype(method):
    with pytest.raises(TypeError, match=r"torch\.float64"):
        getattr(VectorQuantizer(9, 4), method)(torch.zeros(1, 4, 2, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_e": 0}, "n_e must be a positive integer, got 0"),
        ({"e_dim": -4}, "e_dim must be a positive integer, got -4"),
        ({"n_e": 8.0}, r"n_e must be a positive integer, got 8\.0"),
        ({"n_e": True}, "n_e must be a positive integer, got True"),
        ({"n_e": "8"}, "n_e must be a positive integer, got '8'"),
        ({"beta": -0.1}, r"beta must not be negative, got -0\.1"),
        ({"beta": float("nan")}, "beta must not be negative, got nan"),
        ({"learning": "sgd"}, "learning must be 'gradient' or 'ema', got 'sgd'"),
        ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1\.0"),
        ({"decay": -0.5}, r"decay must be in \[0, 1\), got -0\.5"),
        ({"eps": 0.0}, r"eps must be positive, got 0\.0"),
        ({"kmeans_iters": 0}, "kmeans_iters must be a positive integer, got 0"),
        ({"kmeans_samples": 0}, "kmeans_samples must be a positive integer, got 0"),
        ({"dead_code_threshold": -1}, "dead_code_threshold must not be negative, got -1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        VectorQuantizer(**{"n_e": 8, "e_dim": 4, **arguments})


def test_integers_of_numpy_are_integers():
    layer = VectorQuantizer(np.int64(8), np.int32(4), kmeans_init=True, kmeans_samples=np.int64(16))
    assert layer.embedding.weight.shape == (8, 4)
    assert type(layer.n_e) is int


def test_print_says_what_it_is():
    text = repr(VectorQuantizer(8, 4, learning="ema"))
    assert "n_e=8, e_dim=4, beta=0.25, learning='ema'" in text
