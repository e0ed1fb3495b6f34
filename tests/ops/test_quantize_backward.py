"""The gradients of the layer as an op, against the readable formula by autograd in float64."""

import pytest
import torch
from oracle import quantize_gradients, rows_of_books

pytestmark = pytest.mark.interpreted

SHAPES = {
    "rows": ((40, 6), (17, 6)),
    "one row": ((6,), (17, 6)),
    "sequence": ((3, 5, 8), (4, 8)),
    "one dimension": ((50, 1), (3, 1)),
    "one code": ((90, 5), (1, 5)),
    "books": ((3, 20, 6), (3, 7, 6)),
    "books of maps": ((2, 2, 3, 8), (2, 7, 8)),
    "more codes than rows": ((30, 4), (500, 4)),
    "codes of many rows": ((700, 3), (2, 3)),
    "long rows": ((5, 300), (7, 300)),
}
WEIGHTS = (0.3, 0.7)


def check(implementation, grad_quantized, z, codebook, indices, weights=WEIGHTS, loss=3.0):
    """Both gradients, each within what its roundings may do."""
    wide = torch.promote_types(z.dtype, torch.float32)
    grad_loss = torch.tensor(loss, dtype=wide)
    arguments = (grad_quantized, grad_loss, z, codebook, indices, *weights)
    before = [t.clone() for t in arguments[:5]]
    grad_z, grad_codebook = implementation.quantize_backward(*arguments)
    assert all(torch.equal(*pair) for pair in zip(before, arguments[:5], strict=True))
    assert grad_z.dtype == grad_codebook.dtype == z.dtype
    assert grad_z.stride() == torch.empty_like(z).stride()
    assert grad_codebook.shape == codebook.shape
    wanted_z, wanted_codebook = quantize_gradients(*arguments)

    # An error, its product and the sum are rounded in the wide dtype, and the result once more.
    once, last = torch.finfo(wide).eps, torch.finfo(z.dtype)
    flat = rows_of_books(indices, codebook)
    error = z.double() - codebook.double().flatten(0, -2)[flat]
    per_element = 2 * loss / z.numel()
    parts = grad_quantized.double().abs() + (per_element * weights[0] * error).abs()
    allowed = last.eps * wanted_z.abs() + 2 * once * parts + last.smallest_normal * last.eps
    assert ((grad_z.double() - wanted_z).abs() <= allowed).all()
    magnitude = torch.zeros(flat.max() + 1, z.shape[-1], dtype=torch.float64)
    magnitude.index_add_(0, flat.flatten(), error.abs().reshape(-1, z.shape[-1]))
    parts = torch.zeros_like(wanted_codebook).flatten(0, -2)
    parts[: len(magnitude)] = per_element * weights[1] * magnitude
    # And float64 sums, the formula's too, are rounded at every row.
    once = 2 * once + 2 * indices.numel() * torch.finfo(torch.float64).eps
    allowed = last.eps * wanted_codebook.abs() + once * parts.view(codebook.shape)
    allowed += last.smallest_normal * last.eps
    assert ((grad_codebook.double() - wanted_codebook).abs() <= allowed).all()
    return grad_z, grad_codebook


def inputs(shape, codebook_shape, dtype, offset=0.0):
    z = (offset + torch.randn(shape)).to(dtype)
    codebook = (offset + torch.randn(codebook_shape)).to(dtype)
    indices = torch.randint(0, codebook_shape[-2], shape[:-1])
    return torch.randn(shape).to(dtype), z, codebook, indices


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(implementation, dtype, shape):
    grads = check(implementation, *inputs(*SHAPES[shape], dtype))
    # A gradient of zeros would agree with none of them.
    assert all(grad.any() for grad in grads)


@pytest.mark.parametrize("weights", [(0.25, 1.0), (1.0, 0.0), (0.0, 1.0), (0.1, 1e-3)])
def test_weights(implementation, dtype, weights):
    grad_quantized, *rest = inputs((40, 6), (17, 6), dtype)
    grad_z, grad_codebook = check(implementation, grad_quantized, *rest, weights)
    assert torch.equal(grad_z, grad_quantized) == (weights[0] == 0)
    assert grad_codebook.any() == (weights[1] != 0)


def test_no_loss_passes_the_gradient_through(implementation, dtype):
    arguments = inputs((40, 6), (17, 6), dtype)
    grad_z, grad_codebook = check(implementation, *arguments, loss=0.0)
    assert torch.equal(grad_z, arguments[0])
    assert not grad_codebook.any()


LAYOUTS = {
    "transposed": lambda x: x.T.contiguous().T,
    "strided rows": lambda x: x.repeat_interleave(2, 0)[::2],
    "strided elements": lambda x: x.repeat_interleave(3, 1)[:, ::3],
    "feature map": lambda x: x.view(2, 6, 10, -1).movedim(-1, 1).contiguous().movedim(1, -1),
    "rows that start anywhere": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view_as(x),
    "every order of strides": lambda x: (
        x.view(2, 6, 10, -1).permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0)
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dim", [7, 8])
def test_the_layout_leaves_no_trace(implementation, dtype, layout, dim):
    grad_quantized, z, codebook, indices = inputs((120, dim), (5, dim), dtype)
    wanted = check(implementation, grad_quantized, z, codebook, indices)
    lay = LAYOUTS[layout]
    z = lay(z)
    indices = indices.view(z.shape[:-1])
    for grad in (grad_quantized.view(z.shape), lay(grad_quantized)):
        got = check(implementation, grad, z, codebook, indices)
        torch.testing.assert_close(got[0].reshape(wanted[0].shape), wanted[0])
        torch.testing.assert_close(got[1], wanted[1])


def test_what_autograd_hands_over(implementation, dtype):
    """The gradient of a sum is one number, of a mean over rows one row; indices may be strided."""
    _, z, codebook, indices = inputs((2, 30, 8), (5, 8), dtype)
    indices = indices.repeat_interleave(2, 1)[:, ::2]
    for grad in (torch.ones(()), torch.randn(8), torch.randn(2, 1, 1), torch.randn(30, 1)):
        check(implementation, grad.to(dtype).expand(z.shape), z, codebook, indices)
    check(implementation, torch.randn_like(z), z, codebook.T.contiguous().T, indices)


@pytest.mark.parametrize("shape", [(1, 6), (70, 1), (1, 1)])
def test_vectors_that_are_all_alike(implementation, dtype, shape):
    z = torch.randn(shape).to(dtype).expand(70, 6)
    grad_quantized, _, codebook, indices = inputs((70, 6), (5, 6), dtype)
    check(implementation, grad_quantized, z, codebook, indices)


@pytest.mark.parametrize("shape", [(0, 6), (2, 0, 6)])
def test_an_empty_batch(implementation, dtype, shape):
    grad_quantized, z, codebook, indices = inputs(shape, (17, 6), dtype)
    grad_loss = torch.ones((), dtype=torch.promote_types(dtype, torch.float32))
    grads = implementation.quantize_backward(
        grad_quantized, grad_loss, z, codebook, indices, *WEIGHTS
    )
    assert grads[0].shape == shape
    assert torch.equal(grads[1], torch.zeros_like(codebook))


def test_far_from_the_origin(implementation, dtype):
    """Sums of errors; two sums of vectors around 1000 would cancel to nothing in float32."""
    check(implementation, *inputs((700, 4), (3, 4), dtype, offset=1000.0))


def test_codes_far_away(implementation, dtype):
    grad_quantized, z, codebook, indices = inputs((60, 4), (6, 4), dtype)
    codebook[::2] *= 1e4
    codebook[1::2] *= 1e-4
    check(implementation, grad_quantized, z, codebook, indices)


def test_vectors_on_their_codes_have_no_gradient(implementation, dtype):
    _, _, codebook, indices = inputs((60, 4), (6, 4), dtype)
    z = codebook[indices]
    grads = check(implementation, torch.zeros_like(z), z, codebook, indices)
    assert not any(grad.any() for grad in grads)


def test_a_collapsed_codebook(implementation, dtype):
    grad_quantized, z, codebook, indices = inputs((5000, 2), (9, 2), dtype)
    grad_codebook = check(implementation, grad_quantized, z, codebook, indices * 0 + 4)[1]
    assert grad_codebook.any(dim=1).nonzero().flatten().tolist() == [4]


def test_nan_stays_in_its_row_and_its_code(implementation, dtype):
    grad_quantized, z, codebook, indices = inputs((40, 6), (17, 6), dtype)
    z[11, 3] = torch.nan
    grad_loss = torch.ones((), dtype=torch.promote_types(dtype, torch.float32))
    grad_z, grad_codebook = implementation.quantize_backward(
        grad_quantized, grad_loss, z, codebook, indices, *WEIGHTS
    )
    assert grad_z.isnan().nonzero().tolist() == [[11, 3]]
    assert grad_codebook.isnan().nonzero().tolist() == [[int(indices[11]), 3]]


def test_repeated_runs_agree(implementation):
    grad_quantized, *rest = inputs((1000, 8), (30, 8), torch.float32)
    arguments = (grad_quantized, torch.tensor(3.0), *rest, *WEIGHTS)
    first = implementation.quantize_backward(*arguments)
    for _ in range(2):
        again = implementation.quantize_backward(*arguments)
        assert torch.equal(again[0], first[0])
        assert torch.equal(again[1], first[1])
