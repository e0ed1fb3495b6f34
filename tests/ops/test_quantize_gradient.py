import pytest
import torch

import vqvae_fast

pytestmark = pytest.mark.interpreted

SHAPES = {
    "rows": ((40, 6), (17, 6), False),
    "one row": ((6,), (17, 6), False),
    "sequence": ((3, 5, 6), (17, 6), False),
    "feature map": ((2, 6, 4, 5), (17, 6), True),
    "signal": ((2, 6, 9), (17, 6), True),
    "books": ((3, 8, 6), (3, 17, 6), False),
    "books of maps": ((3, 2, 4, 6), (3, 17, 6), False),
    "one code": ((40, 6), (1, 6), False),
}
WEIGHTS = [(0.25, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (2.0, 0.5)]


def formula(z, codebook, commitment_weight=0.25, codebook_weight=1.0, channel_first=False):
    """The readable formula, by autograd; the indices come from a search of all distances."""
    rows = z.movedim(1, -1) if channel_first else z
    books = codebook if codebook.dim() == 3 else codebook[None]
    flat = rows.reshape(len(books), -1, rows.shape[-1])
    with torch.no_grad():
        distances = (flat[:, :, None].double() - books[:, None].double()).square().sum(-1)
        indices = distances.argmin(-1)
    q = torch.stack([book[i] for book, i in zip(books, indices, strict=True)]).view(rows.shape)
    commitment = (rows - q.detach()).square().mean()
    loss = commitment_weight * commitment + codebook_weight * (rows.detach() - q).square().mean()
    quantized = rows + (q - rows).detach()
    if channel_first:
        quantized = quantized.movedim(-1, 1)
    return quantized, indices.view(rows.shape[:-1]), loss


def leaves(z_shape, codebook_shape, dtype=torch.float64, offset=0.0):
    z = (offset + torch.randn(z_shape, dtype=torch.float64)).to(dtype).requires_grad_()
    codebook = (offset + torch.randn(codebook_shape, dtype=torch.float64)).to(dtype)
    return z, codebook.requires_grad_()


def gradients(quantized, loss, z, codebook, seed=3):
    """Of a scalar to which the straight-through values and the loss both contribute."""
    device = quantized.device
    generator = torch.Generator(device).manual_seed(seed)
    weight = torch.randn(quantized.shape, dtype=torch.float64, generator=generator, device=device)
    scalar = (quantized * weight.to(quantized.dtype)).sum() + 3 * loss.to(quantized.dtype)
    return torch.autograd.grad(scalar, (z, codebook), allow_unused=True)


@pytest.mark.quick(interpreted=4)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_the_formulas(shape, weights):
    z_shape, codebook_shape, channel_first = SHAPES[shape]
    z, codebook = leaves(z_shape, codebook_shape)
    got = vqvae_fast.quantize(
        z,
        codebook,
        commitment_weight=weights[0],
        codebook_weight=weights[1],
        channel_first=channel_first,
    )
    quantized, indices, loss = formula(z, codebook, *weights, channel_first)
    assert torch.equal(got.indices, indices)
    torch.testing.assert_close(got.quantized, quantized)
    torch.testing.assert_close(got.loss, loss)
    assert got.loss.shape == ()
    assert got.quantized.stride() == z.stride()
    wanted = gradients(quantized, loss, z, codebook)
    for mine, theirs in zip(gradients(got.quantized, got.loss, z, codebook), wanted, strict=True):
        torch.testing.assert_close(mine, torch.zeros_like(mine) if theirs is None else theirs)
    # A gradient of zeros would agree with nothing but weights of zero.
    assert wanted[0].abs().min() > 0
    assert (wanted[1].abs().max() > 0) == (weights[1] != 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channel_first", [False, True])
def test_narrow_dtypes(dtype, channel_first):
    z, codebook = leaves((2, 6, 6, 6) if channel_first else (200, 6), (17, 6), dtype)
    got = vqvae_fast.quantize(z, codebook, channel_first=channel_first)
    assert got.quantized.dtype == dtype
    assert got.loss.dtype == got.distances.dtype == torch.float32
    wide_z, wide_codebook = (t.detach().double().requires_grad_() for t in (z, codebook))
    _, indices, loss = formula(wide_z, wide_codebook, channel_first=channel_first)
    assert torch.equal(got.indices, indices)
    torch.testing.assert_close(got.loss.double(), loss, rtol=1e-6, atol=0)
    # Of the loss alone, and then of the quantized alone: each to a rounding or two of the dtype.
    eps = torch.finfo(dtype).eps
    mine = torch.autograd.grad(got.loss, (z, codebook), retain_graph=True)
    wanted = torch.autograd.grad(loss, (wide_z, wide_codebook))
    for a, b in zip(mine, wanted, strict=True):
        assert a.dtype == dtype
        assert a.abs().max() > 0
        # Errors and their sums are rounded in float32 before; relative to the largest.
        atol = torch.finfo(dtype).tiny + 2.0**-22 * b.abs().max().item()
        torch.testing.assert_close(a.double(), b, rtol=2 * eps, atol=atol)
    weight = torch.randn(z.shape).to(dtype)
    (straight,) = torch.autograd.grad(got.quantized, z, weight)
    assert torch.equal(straight, weight)


def test_the_gradient_of_a_far_off_codebook_keeps_its_digits():
    """Sums of errors; two sums of vectors around 1000 would cancel to nothing in float32."""
    z, codebook = leaves((4000, 4), (3, 4), torch.float32, offset=1000.0)
    loss = vqvae_fast.quantize(z, codebook, commitment_weight=0.0).loss
    (mine,) = torch.autograd.grad(loss, codebook)
    wide = codebook.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(formula(z.detach().double(), wide, 0.0)[2], wide)
    torch.testing.assert_close(mine.double(), wanted, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("needs_z", [False, True])
@pytest.mark.parametrize("needs_codebook", [False, True])
def test_only_what_is_needed(needs_z, needs_codebook):
    z, codebook = leaves((40, 6), (17, 6))
    z.requires_grad_(needs_z)
    codebook.requires_grad_(needs_codebook)
    got = vqvae_fast.quantize(z, codebook)
    assert not got.indices.requires_grad
    assert not got.distances.requires_grad
    assert got.loss.requires_grad == (needs_z or needs_codebook)
    _, _, loss = formula(z, codebook)
    torch.testing.assert_close(got.loss, loss)
    if got.loss.requires_grad:
        needed = [t for t, needs in ((z, needs_z), (codebook, needs_codebook)) if needs]
        wanted = torch.autograd.grad(loss, needed)
        for mine, theirs in zip(torch.autograd.grad(got.loss, needed), wanted, strict=True):
            assert theirs.abs().max() > 0
            torch.testing.assert_close(mine, theirs)


def test_searches_have_no_gradient():
    z, codebook = leaves((40, 6), (17, 6))
    assert not vqvae_fast.nearest_code(z, codebook).distances.requires_grad
    sums, counts = vqvae_fast.segment_sum(z, torch.zeros(40, dtype=torch.int64), 2)
    assert not sums.requires_grad
    assert not counts.requires_grad


def test_z_serves_twice_in_one_graph():
    z, codebook = leaves((40, 6), (17, 6))

    def twice(quantize):
        first, _, loss = quantize(z * 2, codebook)
        second, _, second_loss = quantize(z + first, codebook)
        return gradients(first + second, loss + second_loss, z, codebook)

    def ours(z, codebook):
        got = vqvae_fast.quantize(z, codebook)
        return got.quantized, got.indices, got.loss

    for mine, theirs in zip(twice(ours), twice(formula), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_residual_chain():
    """z enters each stage through the quantized values of all stages before it."""
    z, codebook = leaves((40, 6), (17, 6))

    def chain(quantize):
        residual, total, losses = z, 0, 0
        for _ in range(3):
            quantized, _, loss = quantize(residual, codebook)
            residual, total, losses = (
                residual - quantized.detach(),
                total + quantized,
                losses + loss,
            )
        return gradients(total, losses, z, codebook)

    def ours(z, codebook):
        got = vqvae_fast.quantize(z, codebook)
        return got.quantized, got.indices, got.loss

    for mine, theirs in zip(chain(ours), chain(formula), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_one_output_alone():
    z, codebook = leaves((40, 6), (17, 6))
    got = vqvae_fast.quantize(z, codebook)
    weight = torch.randn_like(z)
    grads = torch.autograd.grad(
        got.quantized, (z, codebook), weight, retain_graph=True, allow_unused=True
    )
    assert torch.equal(grads[0], weight)
    assert grads[1] is None  # as in z + (q - z).detach(): optimizers leave the codes alone
    (of_loss,) = torch.autograd.grad(got.loss, z)
    torch.testing.assert_close(of_loss, 0.25 * 2 * (z - got.quantized).detach() / z.numel())


@pytest.mark.parametrize("shape", [(0, 6), (2, 0, 6)])
def test_an_empty_batch(dtype, shape):
    z, codebook = leaves(shape, (17, 6), dtype)
    got = vqvae_fast.quantize(z, codebook)
    assert got.quantized.shape == shape
    assert got.loss == 0
    grads = torch.autograd.grad(got.loss + got.quantized.sum(), (z, codebook))
    assert grads[0].shape == shape
    assert torch.equal(grads[1], torch.zeros_like(codebook))


def test_an_empty_feature_map():
    z, codebook = leaves((2, 6, 0, 3), (17, 6))
    got = vqvae_fast.quantize(z, codebook, channel_first=True)
    assert got.quantized.shape == (2, 6, 0, 3)
    assert got.indices.shape == (2, 0, 3)
    assert got.loss == 0


def test_a_vector_on_its_code_has_no_loss():
    _, codebook = leaves((1, 6), (17, 6))
    z = codebook.detach()[[3, 3, 5]].requires_grad_()
    got = vqvae_fast.quantize(z, codebook)
    assert got.loss == 0
    assert all(not grad.any() for grad in torch.autograd.grad(got.loss, (z, codebook)))


def test_what_is_saved():
    """z, codebook and a copy of the indices: neither N x K nor anything new of the size of z."""
    z, codebook = leaves((400, 6), (300, 6))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        got = vqvae_fast.quantize(z, codebook)
    assert [tuple(t.shape) for t in saved] == [(400, 6), (300, 6), (400,)]
    assert saved[0].data_ptr() == z.data_ptr()
    assert saved[1].data_ptr() == codebook.data_ptr()
    assert saved[2].data_ptr() != got.indices.data_ptr(), "the caller may write to them"
    assert torch.equal(saved[2], got.indices)

    saved.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        got = vqvae_fast.quantize(z, codebook.detach())
    assert [tuple(t.shape) for t in saved] == [(400, 6)]
    assert torch.equal(saved[0], z - got.quantized)


@pytest.mark.parametrize("learned", [True, False], ids=["codebook learned", "codebook frozen"])
def test_the_result_may_be_changed_in_place(learned):
    z, codebook = leaves((40, 6), (17, 6))
    codebook.requires_grad_(learned)
    inputs = (z, codebook) if learned else (z,)
    results = []
    for inplace in (True, False):
        got = vqvae_fast.quantize(z, codebook)
        y = torch.nn.functional.relu(got.quantized * 1 if not inplace else got.quantized, inplace)
        results.append(torch.autograd.grad(y.square().sum() + got.loss, inputs))
    for one, other in zip(*results, strict=True):
        assert one.any()
        assert torch.equal(one, other)


def test_nothing_is_saved_without_a_gradient():
    z, codebook = leaves((400, 6), (300, 6))
    saved = []
    with (
        torch.no_grad(),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        got = vqvae_fast.quantize(z, codebook)
    assert saved == []
    assert not got.loss.requires_grad


def test_a_codebook_rewritten_before_backward_is_noticed():
    z, codebook = leaves((40, 6), (17, 6))
    loss = vqvae_fast.quantize(z, codebook).loss
    with torch.no_grad():
        codebook += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def second_gradients(quantized, loss, z, codebook):
    """Differentiates a penalty on the gradients of a scalar that is not linear in the result."""
    scalar = quantized.pow(3).sum() + loss.square()
    wanted = [t for t in (z, codebook) if t.requires_grad]
    first = torch.autograd.grad(scalar, wanted, create_graph=True, allow_unused=True)
    # A gradient that autograd knows to be constant does not require one, and has no derivative.
    penalty = sum(gradient.pow(2).sum() for gradient in first if gradient is not None)
    second = torch.autograd.grad(penalty, wanted, allow_unused=True)
    return [
        torch.zeros_like(t) if gradient is None else gradient
        for t, gradient in zip(wanted, second, strict=True)
    ]


@pytest.mark.parametrize("learned", [True, False], ids=["codebook learned", "codebook frozen"])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_second_derivatives_are_the_formulas(shape, weights, learned):
    z_shape, codebook_shape, channel_first = SHAPES[shape]
    z, codebook = leaves(z_shape, codebook_shape)
    codebook.requires_grad_(learned)
    got = vqvae_fast.quantize(
        z,
        codebook,
        commitment_weight=weights[0],
        codebook_weight=weights[1],
        channel_first=channel_first,
    )
    expected = formula(z, codebook, *weights, channel_first)
    torch.testing.assert_close(
        second_gradients(got.quantized, got.loss, z, codebook),
        second_gradients(expected[0], expected[2], z, codebook),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_second_derivatives_keep_their_dtype(dtype):
    z, codebook = leaves((40, 6), (17, 6), dtype)
    got = vqvae_fast.quantize(z, codebook)
    found = second_gradients(got.quantized, got.loss, z, codebook)
    assert [t.dtype for t in found] == [dtype, dtype]
    exact = [t.detach().double().requires_grad_() for t in (z, codebook)]
    quantized, _, loss = formula(*exact)
    expected = second_gradients(quantized, loss, *exact)
    tolerance = 20 * torch.finfo(dtype).eps
    for one, other in zip(found, expected, strict=True):
        largest = other.abs().max()
        torch.testing.assert_close(one.double() / largest, other / largest, rtol=0, atol=tolerance)


@pytest.mark.parametrize("used", ["quantized", "loss"])
@pytest.mark.parametrize("learned", [True, False], ids=["codebook learned", "codebook frozen"])
def test_a_result_that_nothing_uses_has_no_part_in_the_gradient(used, learned):
    z, codebook = leaves((40, 6), (17, 6))
    codebook.requires_grad_(learned)
    results = []
    for values in (vqvae_fast.quantize(z, codebook)[::2], formula(z, codebook)[::2]):
        scalar = values[0].square().sum() if used == "quantized" else values[1]
        inputs = (z, codebook) if learned and used == "loss" else (z,)
        results.append(torch.autograd.grad(scalar, inputs))
    torch.testing.assert_close(*results)


def test_sparse_gradients_refuse_a_second_derivative():
    z, codebook = leaves((40, 6), (17, 6))
    loss = vqvae_fast.quantize(z, codebook, sparse=True).loss
    with pytest.raises(RuntimeError, match="has no second derivative"):
        torch.autograd.grad(loss, z, create_graph=True)


@pytest.mark.parametrize("channel_first", [False, True])
def test_gradients_have_the_same_bits_on_any_number_of_threads(restore, channel_first):
    z, codebook = leaves((4, 8, 20, 20) if channel_first else (1600, 8), (5, 8), torch.float32)
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        got = vqvae_fast.quantize(z, codebook, channel_first=channel_first)
        results.append(torch.autograd.grad(got.loss, (z, codebook), torch.tensor(1.0)))
    for result in results[1:]:
        assert torch.equal(result[1], results[0][1])
        torch.testing.assert_close(result[0], results[0][0])
