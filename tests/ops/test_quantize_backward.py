"""The backward pass as one op, against the readable formula in float64."""

import pytest
import torch

COMMITMENT, CODEBOOK = 0.3, 0.7


def by_autograd(grad_quantized, grad_loss, z, codebook, indices):
    """The definition: the straight-through estimator and both losses, differentiated."""
    z = z.detach().double().contiguous().requires_grad_()
    codebook = codebook.detach().double().requires_grad_()
    if codebook.dim() == 3:
        chosen = torch.stack([book[i] for book, i in zip(codebook, indices, strict=True)])
    else:
        chosen = codebook[indices]
    loss = COMMITMENT * (z - chosen.detach()).square().mean()
    loss = loss + CODEBOOK * (z.detach() - chosen).square().mean()
    straight_through = z + (chosen - z).detach()
    total = (straight_through * grad_quantized.double()).sum() + grad_loss.double() * loss
    return torch.autograd.grad(total, (z, codebook))


def check(implementation, z, codebook, indices, grad_quantized=None, grad_loss=1.7):
    grad_quantized = torch.randn_like(z) if grad_quantized is None else grad_quantized
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    grad_loss = torch.tensor(grad_loss * z.numel(), dtype=wide)  # or the mean makes all tiny
    result = implementation.quantize_backward(
        grad_quantized, grad_loss, z, codebook, indices, COMMITMENT, CODEBOOK
    )
    wanted = by_autograd(grad_quantized, grad_loss, z, codebook, indices)
    assert [t.shape for t in result] == [z.shape, codebook.shape]
    assert [t.dtype for t in result] == [z.dtype, codebook.dtype]
    assert result[0].stride() == torch.empty_like(z).stride()
    for part, right in zip(result, wanted, strict=True):
        unit = max(torch.finfo(z.dtype).eps, 4 * torch.finfo(wide).eps)
        torch.testing.assert_close(part.double(), right, rtol=2 * unit, atol=20 * unit)
    return result


SHAPES = [(1, 1, 1), (7, 1, 5), (300, 17, 8), (130, 500, 3), (65, 64, 33), (5, 7, 300)]


@pytest.mark.parametrize(("rows", "codes", "dim"), SHAPES)
def test_shapes(implementation, dtype, rows, codes, dim):
    z, codebook = torch.randn(rows, dim).to(dtype), torch.randn(codes, dim).to(dtype)
    check(implementation, z, codebook, torch.randint(codes, (rows,)))


def test_all_rows_chose_one_code(implementation):
    z, codebook = torch.randn(5000, 3), torch.randn(9, 3)
    _, grad = check(implementation, z, codebook, torch.full((5000,), 4), grad_loss=1 / 5000)
    assert (grad[torch.arange(9) != 4] == 0).all()


def test_far_from_the_origin(implementation):
    """The errors are summed: the sums of the rows and of the codes would agree in all digits."""
    codebook = (1000 + torch.randn(5, 4)).requires_grad_(False)
    indices = torch.randint(5, (400,))
    check(implementation, codebook[indices] + 0.01 * torch.randn(400, 4), codebook, indices)


@pytest.mark.parametrize(
    "layout",
    [
        lambda: torch.randn(6, 70).T,
        lambda: torch.randn(70, 12)[:, ::2],
        lambda: torch.randn(3, 6, 5, 7).movedim(1, -1),
        lambda: torch.randn(4, 6, 3, 5).permute(2, 0, 3, 1),
        lambda: torch.randn(1, 6).expand(70, 6),
        lambda: torch.randn(1, 1).expand(70, 6),
    ],
)
def test_layouts(implementation, dtype, layout):
    z, codebook = layout().to(dtype), torch.randn(11, 6).to(dtype)
    indices = torch.randint(11, z.shape[:-1])
    grad = layout().to(dtype)
    check(implementation, z, codebook, indices, grad)
    check(implementation, z.contiguous(), codebook, indices, grad)
    strided = torch.randn(6, 22).to(dtype).T[::2]
    check(implementation, z, strided, indices, torch.ones(1, dtype=dtype).expand(z.shape))


def test_books(implementation, dtype):
    z, codebook = torch.randn(3, 4, 5, 7).to(dtype), torch.randn(3, 29, 7).to(dtype)
    check(implementation, z, codebook, torch.randint(29, (3, 4, 5)))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)])
def test_no_rows(implementation, dtype, shape):
    z, codebook = torch.empty(shape, dtype=dtype), torch.randn(7, 5).to(dtype)
    indices = torch.empty(shape[:-1], dtype=torch.int64)
    grad_z, grad_codebook = implementation.quantize_backward(
        z, torch.tensor(1.0), z, codebook, indices, COMMITMENT, CODEBOOK
    )
    assert grad_z.shape == shape
    assert torch.equal(grad_codebook, torch.zeros_like(codebook))


def test_repeated_runs_agree(implementation):
    z, codebook = torch.randn(1000, 8), torch.randn(30, 8)
    indices = torch.randint(30, (1000,))
    arguments = (torch.randn(1000, 8), torch.tensor(3.0), z, codebook, indices, 0.25, 1.0)
    first = implementation.quantize_backward(*arguments)
    for _ in range(3):
        again = implementation.quantize_backward(*arguments)
        assert torch.equal(again[0], first[0])
        assert torch.equal(again[1], first[1])
