"""The gradient estimators by themselves, beside the peer's and beside their formulas."""

import pytest
import torch

from vqvae_fast.autograd.estimators import directional_reparam, rotate_to, straight_through

SHAPE = (3, 50, 8)
PAIRS = {
    "random": lambda: (torch.randn(SHAPE), torch.randn(SHAPE)),
    "z is 0": lambda: (torch.zeros(SHAPE), torch.randn(SHAPE)),
    "q is 0": lambda: (torch.randn(SHAPE), torch.zeros(SHAPE)),
    "both are 0": lambda: (torch.zeros(SHAPE), torch.zeros(SHAPE)),
    "q is z": lambda: (torch.ones(SHAPE), torch.ones(SHAPE)),
    "opposite": lambda: (torch.ones(SHAPE), -2 * torch.ones(SHAPE)),
    "tiny": lambda: (1e-9 * torch.randn(SHAPE), torch.randn(SHAPE)),
    "one dimension": lambda: (torch.randn(50, 1), torch.randn(50, 1)),
}


def value_and_gradients(function, z, q, seed=0):
    z, q = z.clone().requires_grad_(), q.clone().requires_grad_()
    torch.manual_seed(seed)
    out = function(z, q)
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return out.detach(), z.grad, q.grad


def theirs(name):
    peer = pytest.importorskip("vector_quantize_pytorch.vector_quantize_pytorch")
    return getattr(peer, name)


def test_straight_through():
    z, q = PAIRS["random"]()
    out, grad_z, grad_q = value_and_gradients(straight_through, z, q)
    torch.testing.assert_close(out, q)
    torch.testing.assert_close(grad_z, torch.linspace(-1, 1, z.numel()).view(SHAPE))
    assert grad_q is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pair", PAIRS)
def test_rotation_has_the_peers_gradient_and_exactly_the_codes_value(pair, dtype):
    """The peer's value is z rotated: q but for rounding, and 0 where z is."""
    z, q = (part.to(dtype) for part in PAIRS[pair]())
    _, expected, _ = value_and_gradients(theirs("rotate_to"), z, q)
    out, grad_z, grad_q = value_and_gradients(rotate_to, z, q)
    assert torch.equal(out, q)
    assert grad_q is None
    assert grad_z.isfinite().all()
    # In opposite directions the two reflections cancel: what is left is rounding, and it is scaled.
    torch.testing.assert_close(grad_z, expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())


def test_rotation_is_one():
    """The gradient of |q|/|z| R z, with R built as a matrix."""
    z, q = (part[0, :1].double() for part in PAIRS["random"]())
    u, v = (torch.nn.functional.normalize(part, dim=-1) for part in (z, q))
    w = torch.nn.functional.normalize(u + v, dim=-1)
    rotation = torch.eye(8) - 2 * w.T @ w + 2 * v.T @ u
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(8, dtype=torch.float64))
    torch.testing.assert_close(u @ rotation.T, v)
    _, grad, _ = value_and_gradients(rotate_to, z, q)
    upstream = torch.linspace(-1, 1, 8).double()[None]
    torch.testing.assert_close(grad, upstream @ rotation * (q.norm() / z.norm()))


@pytest.mark.parametrize("variance", [5e-3, 0.0])
@pytest.mark.parametrize("pair", ["random", "z is 0", "q is 0", "tiny"])
def test_directional_reparametrisation_draws_what_the_peer_draws(pair, variance):
    z, q = PAIRS[pair]()
    peer = theirs("directional_reparam")
    expected = value_and_gradients(lambda z, q: peer(z, q, variance), z, q, seed=3)
    got = value_and_gradients(lambda z, q: directional_reparam(z, q, variance), z, q, seed=3)
    torch.testing.assert_close(got, expected)


def test_directional_reparametrisation_where_there_is_no_distance():
    z = torch.ones(SHAPE)
    assert all(part.isfinite().all() for part in value_and_gradients(directional_reparam, z, z))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [straight_through, rotate_to, directional_reparam])
def test_half_precision(function, dtype):
    z, q = (part.to(dtype) for part in PAIRS["random"]())
    out, grad, _ = value_and_gradients(function, z, q)
    assert out.dtype == grad.dtype == dtype
    assert grad.isfinite().all()


@pytest.mark.parametrize("function", [straight_through, rotate_to])
def test_compiled(function):
    torch.compiler.reset()
    z, q = PAIRS["random"]()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    expected, got = (value_and_gradients(each, z, q) for each in (function, compiled))
    torch.testing.assert_close(got, expected)
