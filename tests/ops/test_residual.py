"""Residual quantization: every stage is checked as a search of what the stages before have left."""

import pytest
import torch
from oracle import check
from test_search_contract import LAYOUTS

import vqvae_fast
from vqvae_fast import settings

pytestmark = pytest.mark.interpreted


def stages(z, codebooks, indices):
    """The residual and the indices of each stage, from the chosen codes."""
    residual = z
    for q, book in enumerate(codebooks):
        yield residual, book, indices[..., q]
        residual = residual - book[indices[..., q]]


def check_stages(z, codebooks, result):
    """Each stage's choice is as near as the contract of the search asks; the sum is the codes'."""
    indices, quantized = result
    assert indices.shape == (*z.shape[:-1], len(codebooks))
    assert indices.dtype == torch.int64
    assert quantized.shape == z.shape
    assert quantized.dtype == z.dtype
    for residual, book, chosen in stages(z, codebooks, indices):
        if not book.isfinite().all(dim=1).any():
            assert (chosen == 0).all()
            continue
        residual, chosen = residual.reshape(-1, z.shape[-1]), chosen.reshape(-1)
        finite = residual.isfinite().all(dim=1)
        residual, chosen = residual[finite].double(), chosen[finite]
        distances = (residual - book[chosen].double()).square().sum(dim=1)
        if z.dtype != torch.float64:
            distances = distances.float()
        if len(chosen):
            check((chosen, distances), residual.to(z.dtype), book)
    total = torch.zeros_like(z)
    for q, book in enumerate(codebooks):
        total += book[indices[..., q]]
    assert torch.equal(bits(quantized), bits(total))


def bits(t):
    """Comparable bit for bit; NaNs are equal, whatever their sign."""
    return t.double().nan_to_num(nan=-1e300, posinf=1e301, neginf=-1e301)


def check_all(z, codebooks):
    """Against the oracle, and bit for bit against the loop around the same backend's search."""
    got = vqvae_fast.residual_nearest_code(z, codebooks)
    check_stages(z, codebooks, got)
    residual, total, chosen = z, torch.zeros_like(z), []
    for book in codebooks:
        chosen.append(torch.ops.vqvae_fast.nearest_code(residual, book)[0])
        residual, total = residual - book[chosen[-1]], total + book[chosen[-1]]
    assert torch.equal(got.indices, torch.stack(chosen, dim=-1))
    assert torch.equal(bits(got.quantized), bits(total))
    return got


def random_pair(rows, codes, dim, count, dtype=torch.float32):
    """Rows and books as a trained quantizer has them: each stage's codes smaller."""
    shrink = 0.7 ** torch.arange(count)[:, None, None]
    return torch.randn(rows, dim).to(dtype), (torch.randn(count, codes, dim) * shrink).to(dtype)


# Blocks are 64 rows, tiles 128 or 256 codes, and rows padded to 16, 32, 64 or 128.
SHAPES = [
    (1, 1, 1, 1),
    (1, 130, 8, 8),
    (5, 1, 3, 2),
    (65, 257, 17, 3),
    (63, 127, 33, 4),
    (67, 515, 16, 2),
    (70, 129, 128, 2),
    (9, 300, 129, 2),
    (3, 40, 300, 5),
]


@pytest.mark.parametrize(("rows", "codes", "dim", "count"), SHAPES)
def test_shapes(dtype, rows, codes, dim, count):
    check_all(*random_pair(rows, codes, dim, count, dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    z, codebooks = LAYOUTS[layout](), torch.randn(2, 53, 6)
    before = z.clone()
    got = check_all(z, codebooks)
    assert got.quantized.stride() == torch.empty_like(z).stride()
    assert torch.equal(z, before)


def test_layouts_of_the_books(dtype):
    z = torch.randn(20, 6).to(dtype)
    check_all(z, torch.randn(53, 12, 3).to(dtype)[:, ::2].permute(2, 0, 1))
    check_all(z, torch.randn(1, 53, 6).to(dtype).expand(4, 53, 6))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5)])
def test_an_empty_batch(dtype, shape):
    z, codebooks = torch.randn(shape).to(dtype), torch.randn(4, 7, 5).to(dtype)
    indices, quantized = vqvae_fast.residual_nearest_code(z, codebooks)
    assert indices.shape == (*shape[:-1], 4)
    assert quantized.shape == shape


def test_a_single_vector(dtype):
    indices, quantized = check_all(torch.randn(6).to(dtype), torch.randn(3, 11, 6).to(dtype))
    assert indices.shape == (3,)
    assert quantized.shape == (6,)


def adversarial():
    """(name, z, codebooks): what makes a bound useless, or a stage unlike the others."""
    z, books = random_pair(40, 300, 8, 4)
    yield "duplicates", z, books[:, :10].repeat(1, 30, 1)
    yield "offset", z + 1000, torch.cat([books[:1] + 1000, books[1:]])
    rows = z.clone()
    rows[3, 2], rows[7, 0], rows[9, 1] = torch.nan, torch.inf, -torch.inf
    yield "rows with NaN and infinity", rows, books
    dead = books.clone()
    dead[:, 5], dead[1, 290] = 1e30, -1e30
    yield "dead codes", z, dead
    far = books.clone()
    far[1] += 3e20
    yield "a far book", z, far
    zeros = books.clone()
    zeros[2] = 0
    yield "a book of zeros", z[:6], zeros
    broken = books.clone()
    broken[0, ::2], broken[1, 7, 3] = torch.nan, torch.inf
    yield "codes with NaN and infinity", z, broken
    broken = books.clone()
    broken[1] = torch.nan
    yield "a book without a usable code", z[:6], broken
    grid = torch.randint(-2, 3, (4, 300, 3)).float()
    yield "exact ties", torch.randint(-2, 3, (40, 3)) + 0.5, grid
    yield "codes hit exactly", books[0, :40] + books[1, :40], books
    yield "tiny", z * 1e-38, books * 1e-38
    yield "huge", z * 1e18, books * 1e18
    near = torch.nextafter(books[:, :1], torch.tensor(9.0)).expand(4, 300, 8).clone()
    near[:, ::3] = books[:, :1]
    yield "one ulp apart", z, near


ADVERSARIAL = {name: pair for name, *pair in adversarial()}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial(name):
    check_all(*ADVERSARIAL[name])


def test_a_row_with_nan_has_index_0_in_all_stages():
    z, codebooks = random_pair(5, 30, 4, 3)
    z[2, 1] = torch.nan
    indices, quantized = vqvae_fast.residual_nearest_code(z, codebooks)
    assert (indices[2] == 0).all()
    assert torch.equal(quantized[2], codebooks[0, 0] + codebooks[1, 0] + codebooks[2, 0])


def test_duplicated_codes_have_the_lowest_index_in_every_stage():
    z, books = random_pair(40, 10, 8, 4)
    indices, _ = vqvae_fast.residual_nearest_code(z, books.repeat(1, 60, 1))
    assert indices.max() < 10


def test_a_row_has_the_same_answer_in_any_company():
    z, codebooks = random_pair(130, 200, 8, 3)
    together = vqvae_fast.residual_nearest_code(z, codebooks)
    order = torch.randperm(130)
    shuffled = vqvae_fast.residual_nearest_code(z[order], codebooks)
    assert torch.equal(shuffled.indices, together.indices[order])
    assert torch.equal(shuffled.quantized, together.quantized[order])


def test_no_gradient():
    z, codebooks = random_pair(5, 7, 4, 3)
    got = vqvae_fast.residual_nearest_code(z.requires_grad_(), codebooks.requires_grad_())
    assert not got.quantized.requires_grad


def test_autocast_searches_in_float32():
    z, codebooks = random_pair(20, 30, 4, 3)
    z = z.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = vqvae_fast.residual_nearest_code(z, codebooks)
    wanted = vqvae_fast.residual_nearest_code(z.float(), codebooks)
    assert torch.equal(got.indices, wanted.indices)
    assert torch.equal(got.quantized, wanted.quantized)


@pytest.mark.parametrize(
    ("z", "codebooks", "error", "message"),
    [
        (torch.zeros(3, 5), torch.zeros(7, 5), ValueError, r"\[Q, K, D=5\], got \[7, 5\]"),
        (torch.zeros(3, 5), torch.zeros(2, 7, 4), ValueError, r"\[Q, K, D=5\], got \[2, 7, 4\]"),
        (torch.zeros(3, 5), torch.zeros(0, 7, 5), ValueError, r"at least one book.*\[0, 7, 5\]"),
        (torch.zeros(3, 5), torch.zeros(2, 0, 5), ValueError, r"at least one book.*\[2, 0, 5\]"),
        (torch.zeros(3, 0), torch.zeros(2, 7, 0), ValueError, r"one dimension.*\[2, 7, 0\]"),
        (torch.zeros(()), torch.zeros(2, 7, 5), ValueError, "without dimensions"),
        (torch.zeros(3, 5), torch.zeros(2, 7, 5).double(), TypeError, "codebooks must have z's"),
        (torch.zeros(3, 5).long(), torch.zeros(2, 7, 5), TypeError, "z must be one of"),
        (
            torch.zeros(3, 5),
            torch.zeros(2, 7, 5, device="meta"),
            ValueError,
            "codebooks must be on",
        ),
        (torch.zeros(3, 5), [[1.0]], TypeError, "codebooks must be a torch.Tensor, got list"),
    ],
)
def test_what_is_refused(z, codebooks, error, message):
    with pytest.raises(error, match=message):
        vqvae_fast.residual_nearest_code(z, codebooks)


@pytest.mark.skipif(not settings.current.triton_interprets, reason="Triton's, in its interpreter")
class TestTriton:
    """Which way a call goes in the Triton backend."""

    @pytest.mark.parametrize(
        ("codes", "dim", "dtype", "fits"),
        [
            (16384, 128, torch.float32, True),
            (16385, 128, torch.float32, False),
            (32768, 64, torch.float32, True),
            (32769, 64, torch.float32, False),
            (8, 129, torch.float32, False),
            (8, 8, torch.float64, False),
            (8, 8, torch.bfloat16, True),
        ],
    )
    def test_what_fits_one_launch(self, codes, dim, dtype, fits):
        from vqvae_fast.backends.triton.residual import fitting_configuration

        z, books = torch.zeros(1, dim, dtype=dtype), torch.zeros(1, 1, dim, dtype=dtype)
        assert (fitting_configuration(z, books.expand(2, codes, dim)) is not None) == fits

    def test_ordinary_rows_are_settled_by_the_one_launch(self, monkeypatch):
        """Nothing is on the second kernel's list, or missing without it."""
        from vqvae_fast.backends.triton import residual

        listed = []

        class Counts:
            def __getitem__(self, grid):
                return lambda *arguments, **constants: listed.append(arguments[-1].item())

        z, codebooks = random_pair(130, 300, 16, 4)
        monkeypatch.setattr(residual, "residual_exact_kernel", Counts())
        check_all(z, codebooks)
        assert listed == [0]

    @pytest.mark.parametrize(
        ("z", "copies"),
        [
            (torch.zeros(5, 16), False),
            (torch.zeros(5, 2, 128), False),
            (torch.zeros(5, 17), True),
            (torch.zeros(5, 32)[:, ::2], True),
            (torch.zeros(5, 16, 3, 2).movedim(1, -1), True),
        ],
    )
    def test_only_rows_that_do_not_lie_end_to_end_are_copied(self, monkeypatch, z, copies):
        from vqvae_fast.backends.triton import residual

        seen = []
        monkeypatch.setattr(residual, "_all_stages", lambda rows, *_: seen.append(rows))
        residual.residual_nearest_code(z, torch.zeros(2, 7, z.shape[-1]))
        (rows,) = seen
        assert rows.is_contiguous()
        assert rows.shape[-1] in (16, 32, 64, 128)
        assert (rows.data_ptr() != z.data_ptr()) == copies

    @pytest.mark.parametrize("shape", [(40, 6), (4, 6, 3, 3)])
    def test_copies_are_bounded(self, monkeypatch, shape):
        from vqvae_fast.backends.triton import residual

        seen, all_stages = [], residual._all_stages

        def watched(rows, *others):
            seen.append(rows.numel())
            all_stages(rows, *others)

        monkeypatch.setattr(residual, "_all_stages", watched)
        monkeypatch.setattr(residual, "_COPIED_ELEMENTS", 16 * 18)
        check_all(torch.randn(shape).movedim(1, -1), torch.randn(2, 30, 6))
        assert len(seen) > 1
        assert max(seen) <= 16 * 18
