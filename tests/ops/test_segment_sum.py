import pytest
import torch

import vqvae_fast

pytestmark = pytest.mark.interpreted

SHAPES = [(1, 1, 1), (7, 1, 5), (300, 17, 8), (1000, 5000, 3), (513, 64, 33), (40, 7, 300)]


def by_loop(src, indices, count):
    """The definition, in float64."""
    sums = torch.zeros(count, src.shape[-1], dtype=torch.float64)
    counts = torch.zeros(count, dtype=torch.float64)
    for row, index in zip(
        src.reshape(-1, src.shape[-1]).double(), indices.flatten().tolist(), strict=True
    ):
        if index >= 0:
            sums[index] += row
            counts[index] += 1
    return sums, counts


def check(result, src, indices, count):
    sums, counts = result
    wide = torch.float64 if src.dtype == torch.float64 else torch.float32
    assert sums.dtype == counts.dtype == wide
    wanted_sums, wanted_counts = by_loop(src, indices, count)
    magnitude = by_loop(src.double().abs(), indices, count)[0]
    # float64 sums, rounded once: half a unit in the last place of the result, and the sum's own.
    error = (sums.double() - wanted_sums.to(wide).double()).abs()
    assert (error <= 1e-7 * wanted_sums.abs() + 1e-13 * magnitude).all()
    assert torch.equal(counts, wanted_counts.to(wide))


@pytest.mark.quick(interpreted=4)
@pytest.mark.parametrize(("rows", "count", "dim"), SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_shapes(implementation, dtype, rows, count, dim, masked):
    src = torch.randn(rows, dim).to(dtype)
    indices = torch.randint(-3 if masked else 0, count, (rows,))
    check(implementation.segment_sum(src, indices, count), src, indices, count)


def test_all_rows_in_one_segment(implementation, dtype):
    src = (1000 + torch.randn(5000, 3)).to(dtype)
    indices = torch.full((5000,), 4)
    check(implementation.segment_sum(src, indices, 9), src, indices, 9)


def test_all_rows_masked(implementation, dtype):
    sums, counts = implementation.segment_sum(
        torch.ones(6, 3, dtype=dtype), torch.full((6,), -1), 4
    )
    assert torch.equal(sums, torch.zeros_like(sums))
    assert torch.equal(counts, torch.zeros_like(counts))
    assert sums.shape == (4, 3)


@pytest.mark.parametrize("shape", [(0, 3), (0, 5, 3), (4, 0, 3)])
def test_no_rows(implementation, dtype, shape):
    sums, counts = implementation.segment_sum(
        torch.empty(shape, dtype=dtype), torch.empty(shape[:-1], dtype=torch.int64), 4
    )
    assert torch.equal(sums, torch.zeros(4, 3, dtype=sums.dtype))
    assert torch.equal(counts, torch.zeros(4, dtype=sums.dtype))


def test_rows_without_elements(implementation):
    sums, counts = implementation.segment_sum(torch.empty(5, 0), torch.tensor([0, 1, 1, -1, 1]), 2)
    assert sums.shape == (2, 0)
    assert counts.tolist() == [1, 3]


def test_a_single_row(implementation):
    sums, counts = implementation.segment_sum(torch.tensor([1.0, 2.0]), torch.tensor(1), 3)
    assert sums.tolist() == [[0, 0], [1, 2], [0, 0]]
    assert counts.tolist() == [0, 1, 0]


def test_masked_rows_may_hold_anything(implementation):
    src = torch.tensor([[1.0], [torch.nan], [torch.inf], [2.0]])
    sums, _ = implementation.segment_sum(src, torch.tensor([0, -1, -(2**40), 0]), 1)
    assert sums.item() == 3


def test_nan_stays_in_its_segment(implementation):
    src = torch.tensor([[1.0], [torch.nan], [torch.inf], [2.0]])
    sums, _ = implementation.segment_sum(src, torch.tensor([0, 1, 2, 0]), 3)
    torch.testing.assert_close(sums[:, 0], torch.tensor([3, torch.nan, torch.inf]), equal_nan=True)


@pytest.mark.parametrize("bad", [4, 5, 2**40, 2**63 - 1])
def test_an_index_that_is_no_segment(implementation, bad):
    indices = torch.tensor([0, bad, 1])
    with pytest.raises(IndexError, match="must be below num_segments=4"):
        implementation.segment_sum(torch.ones(3, 2), indices, 4)
    assert indices.tolist() == [0, bad, 1]


def test_float32_is_summed_in_float64(implementation):
    """Ones onto 2^25 and back: added in float32 not one of them would count."""
    src = torch.cat([torch.tensor([2.0**25]), torch.ones(9999), torch.tensor([-(2.0**25)])])
    one_segment = torch.zeros(len(src), dtype=torch.int64)
    sums, _ = implementation.segment_sum(src[:, None], one_segment, 1)
    assert sums.item() == 9999
    assert torch.zeros(1).index_add_(0, one_segment, src).item() == 0


LAYOUTS = {
    "transposed": lambda x: x.T.contiguous().T,
    "strided rows": lambda x: x.repeat_interleave(2, 0)[::2],
    "strided elements": lambda x: x.repeat_interleave(3, 1)[:, ::3],
    "feature map": lambda x: x.view(5, 8, 12, -1).movedim(-1, 1).contiguous().movedim(1, -1),
    "one between many, of any stride": lambda x: x.view(1, 5, 96, -1).transpose(0, 1),
    "every order of strides": lambda x: (
        x.view(5, 8, 12, -1).permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0)
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_leaves_no_trace(implementation, dtype, layout):
    plain = torch.randn(480, 7).to(dtype)
    src = LAYOUTS[layout](plain)
    indices = torch.randint(-1, 19, (480,))
    wanted = implementation.segment_sum(plain, indices, 19)
    got = implementation.segment_sum(src, indices.view(src.shape[:-1]), 19)
    check(got, plain, indices, 19)
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])


def test_strided_and_expanded_arguments(implementation):
    src = torch.randn(1, 6).expand(30, 6)
    indices = torch.randint(0, 4, (60,))[::2]
    check(implementation.segment_sum(src, indices, 4), src, indices, 4)
    src = torch.randn(30, 1).expand(30, 6)
    check(implementation.segment_sum(src, indices, 4), src, indices, 4)


@pytest.mark.parametrize("feature_map", [False, True])
@pytest.mark.parametrize("count", [1, 3, 700])
def test_thread_counts_agree(implementation, feature_map, count):
    src = torch.randn(7, 2000).T if feature_map else torch.randn(2000, 7)
    indices = torch.randint(-1, count, (2000,))
    indices[:1500] = 0
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        results.append(implementation.segment_sum(src, indices, count))
    for sums, counts in results[1:]:
        assert torch.equal(sums, results[0][0])
        assert torch.equal(counts, results[0][1])


@pytest.mark.parametrize("masked", [False, True])
def test_statistics_of_books(masked):
    z, codebook = torch.randn(3, 5, 4, 2), torch.randn(3, 7, 2)
    indices, _ = vqvae_fast.nearest_code(z, codebook)
    if masked:  # whole vectors of whole books: none of them may count for another book
        indices[:, 1:3] = -1
    sums, counts = vqvae_fast.functional.code_statistics(z, indices, codebook)
    assert sums.shape == codebook.shape
    assert counts.shape == (3, 7)
    for h in range(3):
        wanted = by_loop(z[h], indices[h], 7)
        torch.testing.assert_close(sums[h].double(), wanted[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(counts[h].double(), wanted[1])
