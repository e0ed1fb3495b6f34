"""Codes of indices, and the gradient that is a deterministic segment sum."""

import pytest
import torch

from vqvae_fast.autograd.gather import sum_by_code, take_codes


def gradient(function, codebook, indices, upstream):
    codebook = codebook.clone().requires_grad_()
    codes = function(codebook, indices)
    codes.backward(upstream)
    return codes.detach(), codebook.grad


def plainly(codebook, indices):
    if codebook.dim() == 2:
        return codebook[indices]
    return torch.stack([book[chosen] for book, chosen in zip(codebook, indices, strict=True)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("books", "shape"),
    [((7, 5), (40,)), ((7, 5), (4, 3, 2)), ((3, 7, 5), (3, 4, 10)), ((1, 1), ())],
)
def test_value_and_gradient(books, shape, dtype):
    codebook = torch.randn(books, dtype=dtype)
    indices = torch.randint(books[-2], shape)
    upstream = torch.randn(*shape, books[-1], dtype=dtype)
    expected = gradient(plainly, codebook, indices, upstream)
    got = gradient(take_codes, codebook, indices, upstream)
    assert torch.equal(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1])


@pytest.mark.parametrize("books", [(7, 5), (3, 7, 5)])
@pytest.mark.parametrize("function", [take_codes, sum_by_code])
def test_derivatives_of_every_order(function, books):
    codebook = torch.randn(books, dtype=torch.float64, requires_grad=True)
    indices = torch.randint(7, (3, 4))
    rows = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)

    def call(values):
        # Linear functions have derivatives of zero beyond the first: the square has others.
        rest = (indices,) if function is take_codes else (indices, codebook.detach())
        return function(values, *rest).square()

    values = codebook if function is take_codes else rows
    assert torch.autograd.gradcheck(call, (values,))
    assert torch.autograd.gradgradcheck(call, (values,))


def test_gradient_is_the_same_in_every_run():
    codebook, indices = torch.randn(4, 8), torch.randint(4, (20_000,))
    upstream = torch.randn(20_000, 8)
    runs = [gradient(take_codes, codebook, indices, upstream)[1] for _ in range(3)]
    assert all(torch.equal(run, runs[0]) for run in runs)


def test_gradient_in_half_precision_is_summed_wide():
    """A sum of 4096 ones that bfloat16 itself would stop at 256."""
    codebook = torch.randn(2, 3, dtype=torch.bfloat16)
    indices = torch.zeros(4096, dtype=torch.int64)
    _, grad = gradient(take_codes, codebook, indices, torch.ones(4096, 3, dtype=torch.bfloat16))
    assert grad.dtype == torch.bfloat16
    assert (grad[0] == 4096).all()
    assert not grad[1].any()


def test_a_view_of_the_gradient_from_an_expanded_sum():
    codebook, indices = torch.randn(7, 5), torch.randint(7, (40,))
    upstream = torch.ones(()).expand(40, 5)
    expected = gradient(plainly, codebook, indices, upstream)[1]
    torch.testing.assert_close(gradient(take_codes, codebook, indices, upstream)[1], expected)


def test_no_indices():
    codes, grad = gradient(
        take_codes, torch.randn(7, 5), torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0, 5)
    )
    assert codes.shape == (2, 0, 5)
    assert not grad.any()


@pytest.mark.parametrize("index", [-1, 7])
def test_an_index_that_is_none(index):
    with pytest.raises(IndexError):
        take_codes(torch.randn(7, 5), torch.tensor([0, index]))


def test_a_negative_index_of_the_second_book_is_no_code_of_the_first():
    with pytest.raises(IndexError):
        take_codes(torch.randn(2, 7, 5), torch.tensor([[0], [-1]]))


@pytest.mark.parametrize("books", [(7, 5), (3, 7, 5)])
def test_compiled(books):
    torch.compiler.reset()
    codebook, indices = torch.randn(books), torch.randint(7, (3, 10))
    upstream = torch.randn(3, 10, 5)
    compiled = torch.compile(take_codes, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        gradient(compiled, codebook, indices, upstream),
        gradient(take_codes, codebook, indices, upstream),
    )
