"""A codebook of moving averages, moved on by a batch: the kernel against the readable formula."""

import pytest
import torch
from kernels import REFUSED
from oracle import moving_averages

moving_average_ = torch.ops.vqvae_fast.moving_average_.default


def arguments(src_dtype=torch.float32, dtype=torch.float32, books=(), rows=(6, 50), k=37, d=5):
    """average, cluster_size, codebook, src, indices; some codes without vectors."""
    torch.manual_seed(0)
    average = torch.randn(*books, k, d, dtype=dtype)
    size = torch.rand(*books, k, dtype=dtype)
    indices = torch.randint(-1, k - 10, (*books, *rows))
    return [average, size, average.clone(), torch.randn(*books, *rows, d).to(src_dtype), indices]


def moved(op, tensors, decay=0.8, eps=1e-5):
    tensors = [t.clone() for t in tensors]
    op(*tensors, decay, eps)
    return tensors[:3]


def wanted_after(tensors, decay=0.8, eps=1e-5):
    average, size, _, src, indices = tensors
    return moving_averages(average, size, src, indices, decay, eps)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("books", [(), (1,), (3,)])
@pytest.mark.parametrize("src_dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_it_is_the_formula(src_dtype, books, decay):
    dtype = torch.promote_types(src_dtype, torch.float32)
    tensors = arguments(src_dtype, dtype, books)
    found = moved(moving_average_, tensors, decay)
    for ours, wanted in zip(found, wanted_after(tensors, decay), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-6)


def test_the_formula_by_hand():
    average, size = torch.tensor([[2.0], [4.0]]), torch.tensor([1.0, 3.0])
    codes, rows = torch.zeros(2, 1), torch.tensor([[1.0], [2.0], [9.0]])
    moving_average_(average, size, codes, rows, torch.tensor([0, 0, -1]), 0.75, 0.5)
    assert average.tolist() == [[0.75 * 2 + 0.25 * 3], [3.0]]
    assert size.tolist() == [0.75 + 0.25 * 2, 2.25]
    smoothed = [(n + 0.5) * 3.5 / (3.5 + 2 * 0.5) for n in (1.25, 2.25)]
    torch.testing.assert_close(codes, torch.tensor([[2.25 / smoothed[0]], [3.0 / smoothed[1]]]))


@pytest.mark.parametrize("threads", [1, 2])
def test_any_layout_gives_the_same_bits(threads):
    tensors = arguments()
    before = torch.get_num_threads()
    wanted = moved(moving_average_, tensors)
    try:
        torch.set_num_threads(threads)
        average, size, codes, src, indices = (t.clone() for t in tensors)
        feature_map = src.movedim(-1, 0).contiguous().movedim(0, -1)
        apart = [torch.stack([t, t], dim=-1)[..., 0] for t in (average, size, codes)]
        moving_average_(*apart, feature_map, indices.t().contiguous().t(), 0.8, 1e-5)
    finally:
        torch.set_num_threads(before)
    for ours, first in zip(apart, wanted, strict=True):
        assert torch.equal(ours, first)


def test_narrow_codes_are_written_from_wide_averages():
    average, size, codes, src, indices = arguments()
    codes = codes.bfloat16()
    wanted = wanted_after([average, size, average, src, indices])[2]
    moving_average_(average, size, codes, src, indices, 0.8, 1e-5)
    torch.testing.assert_close(codes.double(), wanted, rtol=5e-3, atol=1e-6)


def test_no_rows_only_let_the_averages_fade():
    tensors = arguments(rows=(0,))
    for ours, wanted in zip(moved(moving_average_, tensors), wanted_after(tensors), strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-6)


def test_a_book_of_which_nothing_is_left_stays_finite():
    tensors = arguments(rows=(0,))
    tensors[0].zero_()
    tensors[1].zero_()
    assert not moved(moving_average_, tensors)[2].any()


@pytest.mark.parametrize("books", [(), (3,)])
def test_a_wrong_index_changes_nothing(books):
    tensors = arguments(books=books)
    tensors[4].view(-1)[-1] = 37  # in the last book
    before = [t.clone() for t in tensors]
    with pytest.raises(IndexError):
        moving_average_(*tensors, 0.8, 1e-5)
    for tensor, old in zip(tensors, before, strict=True):
        assert torch.equal(tensor, old)


@pytest.mark.parametrize(
    ("place", "wrong", "sentence"),
    [
        (0, torch.zeros(37, 4), "average must have the codebook's shape"),
        (1, torch.zeros(36), "cluster_size too without D, got"),
        (2, torch.zeros(37), "average must have the codebook's shape"),
        (3, torch.zeros(6, 50, 4), r"src must be \[\.\.\., D\]"),
        (4, torch.zeros(6, 49, dtype=torch.int64), r"src must be \[\.\.\., D\] and indices"),
        (4, torch.zeros(6, 50, dtype=torch.int32), "indices must be int64, got Int"),
    ],
)
def test_what_does_not_fit_is_refused(place, wrong, sentence):
    tensors = arguments()
    tensors[place] = wrong
    pytest.importorskip("vqvae_fast._C")  # the readable formula relies on its callers
    with pytest.raises(REFUSED, match=sentence):
        moving_average_(*tensors, 0.8, 1e-5)


def test_autograd_knows_that_the_codes_have_changed():
    tensors = arguments()
    factor = torch.ones_like(tensors[2]).requires_grad_()
    product = (tensors[2] * factor).sum()
    moving_average_(*tensors, 0.8, 1e-5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_writes_to_a_tensor_of_inference_mode_belong_there(place):
    tensors = list(arguments())
    with torch.inference_mode():
        tensors[place] = tensors[place].clone()
    before = [tensor.clone() for tensor in tensors]
    with pytest.raises(RuntimeError, match="cannot write to a tensor that was made in inference"):
        moving_average_(*tensors, 0.8, 1e-5)
    for tensor, unchanged in zip(tensors, before, strict=True):
        assert torch.equal(tensor, unchanged)
    with torch.inference_mode():
        moving_average_(*tensors, 0.8, 1e-5)
    assert not torch.equal(tensors[0], before[0])


@pytest.mark.parametrize("books", [(), (2,)])
def test_opcheck(books):
    result = torch.library.opcheck(moving_average_, (*arguments(books=books), 0.8, 1e-5))
    assert set(result.values()) == {"SUCCESS"}
