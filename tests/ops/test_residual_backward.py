"""The gradient through all stages of residual quantization: the kernel against the formula."""

import pytest
import torch
from oracle import residual_gradient

residual_backward = torch.ops.vqvae_fast.residual_backward.default


def arguments(dtype=torch.float32, rows=(5, 7), d=13, sizes=(9, 4, 30), rotates=True):
    torch.manual_seed(0)
    z, grad = (torch.randn(*rows, d, dtype=dtype) for _ in range(2))
    books = [torch.randn(k, d, dtype=dtype) for k in sizes]
    indices = torch.stack([torch.randint(k, rows) for k in sizes], dim=-1)
    return [grad, torch.randn(len(sizes), dtype=dtype), z, books, indices, rotates]


@pytest.mark.parametrize("rotates", [True, False])
@pytest.mark.parametrize("d", [1, 7, 8, 64, 133])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_formula(dtype, d, rotates):
    given = arguments(dtype, d=d, rotates=rotates)
    found = residual_backward(*given)
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(
        found.double(), residual_gradient(*given), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("case", ["zero row", "zero code", "opposite", "the row itself"])
def test_directions_that_are_none(case):
    given = arguments(sizes=(1,), d=8)
    row, book = given[2], given[3][0]
    if case == "zero row":
        row.zero_()
    elif case == "zero code":
        book.zero_()
    elif case == "opposite":
        row.copy_(-2 * book[0])
    else:
        row.copy_(book[0])
    found = residual_backward(*given).double()
    torch.testing.assert_close(found, residual_gradient(*given), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_any_layout_gives_the_same_bits(threads):
    grad, grad_losses, z, books, indices, rotates = arguments(rows=(40, 33))
    wanted = residual_backward(grad, grad_losses, z, books, indices, rotates)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        as_map = [t.movedim(-1, 0).contiguous().movedim(0, -1) for t in (grad, z)]
        apart = [torch.stack([book, book], dim=-1)[..., 0] for book in books]
        chosen = indices.movedim(-1, 0).contiguous().movedim(0, -1)
        found = residual_backward(as_map[0], grad_losses, as_map[1], apart, chosen, rotates)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, wanted)


def test_no_rows():
    assert residual_backward(*arguments(rows=(0,))).shape == (0, 13)


@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_that_is_none_is_refused(index):
    given = arguments()
    given[4][2, 3, 1] = index
    with pytest.raises(IndexError):
        residual_backward(*given)


@pytest.mark.parametrize(
    ("place", "wrong", "sentence"),
    [
        (0, torch.zeros(5, 7, 12), "grad_quantized must be like z"),
        (1, torch.zeros(2), r"grad_losses \[Q\]"),
        (
            2,
            torch.zeros(5, 7, 13, dtype=torch.bfloat16),
            "z must be float32 or float64, got",
        ),
        (3, [torch.zeros(9, 13)] * 2, "for Q books, got .* and 2 books"),
        (3, [torch.zeros(9, 12)] * 3, r"books must be \[K, D=13\], got \[9, 12\]"),
        (3, [torch.zeros(9, 13, dtype=torch.float64)] * 3, "all must have z's dtype Float, got D"),
        (3, [], "there must be a book"),
        (4, torch.zeros(5, 6, 3, dtype=torch.int64), r"indices \[\.\.\., Q\]"),
        (4, torch.zeros(5, 7, 3), "indices must be int64, got Float"),
    ],
)
def test_what_does_not_fit_is_refused(place, wrong, sentence):
    pytest.importorskip("vqvae_fast._C")  # the readable formula relies on its callers
    given = arguments()
    given[place] = wrong
    with pytest.raises(ValueError, match=sentence):
        residual_backward(*given)


@pytest.mark.parametrize("rotates", [True, False])
def test_opcheck(rotates):
    result = torch.library.opcheck(residual_backward, tuple(arguments(rotates=rotates)))
    assert set(result.values()) == {"SUCCESS"}
