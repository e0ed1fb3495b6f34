"""A codebook that is packed beforehand gives the bits of the codebook itself."""

import pytest
import torch
from adversarial import CASES, DOUBLE, FILTERED, HALF, SMALL, Size
from kernels import (
    FILTERING,
    INSTRUCTION_SETS,
    compiled,
    filtering_sets,
    same_bits,
    settled_by_filter,
)
from oracle import check
from torch import Tensor

import vqvae_fast

pytestmark = pytest.mark.usefixtures("restore")
needs_kernels = pytest.mark.skipif(not INSTRUCTION_SETS, reason="the C++ extension is not there")
# Off the small tiles of one, two, four and eight rows, and more than a tile, a block and a chunk.
COUNTS = (1, 2, 3, 5, 8, 9, 13, 14, 15, 29, 61, 230)
# The bytes before it say what a packed book is, and are checked.
HEADER = 160


def check_everywhere(z: Tensor, codebook: Tensor) -> None:
    """The oracle judges the packed search, whose bits are those of the search that packs itself."""
    wanted = vqvae_fast.nearest_code(z, codebook)
    check(wanted, z, codebook)
    for isa in INSTRUCTION_SETS or ["reference"]:
        if INSTRUCTION_SETS:
            compiled(isa)
        packed = vqvae_fast.pack(codebook)
        for count in COUNTS:
            if count > len(z):
                break
            found = vqvae_fast.nearest_code(z[-count:], packed)
            for mine, theirs in zip(found, wanted, strict=True):
                assert same_bits(mine, theirs[-count:]), (isa, count)


@pytest.mark.quick(40)
@pytest.mark.parametrize("size", [SMALL, *FILTERED], ids=str)
@pytest.mark.parametrize(
    ("dtype", "case"),
    [(dtype, case) for dtype in (torch.float32, torch.bfloat16) for case in CASES]
    + [(torch.float16, case) for case in HALF],
    ids=str,
)
def test_named_values(size: Size, dtype: torch.dtype, case: str) -> None:
    cases = HALF if dtype == torch.float16 else CASES
    check_everywhere(*(part.to(dtype) for part in cases[case](size)))


@pytest.mark.quick(4)
@pytest.mark.parametrize("case", CASES)
def test_named_values_in_a_large_book(case: str) -> None:
    """Beyond 1 MiB of codes the filter scores candidates again before it measures them."""
    check_everywhere(*CASES[case](Size(rows=29, codes=4099, dim=67)))


def test_two_near_codes_that_share_a_lane() -> None:
    """Integers cannot tell them apart, and a lane of the filter keeps one score for both."""
    codebook = torch.randn(4099, 67)
    first = torch.arange(61) * 64 + torch.randint(16, (61,))
    second = first + 16 * torch.randint(1, 4, (61,))
    step = (codebook[second] - codebook[first]) / 2
    z = codebook[first] + step * (1 + 1e-4 * torch.where(torch.rand(61) < 0.5, -1, 1))[:, None]
    check_everywhere(z, codebook)


@pytest.mark.quick(6)
@pytest.mark.parametrize("case", [*CASES, *DOUBLE])
def test_named_values_in_float64(case: str) -> None:
    check_everywhere(*{**CASES, **DOUBLE}[case](SMALL))


@pytest.mark.parametrize("offset", [0, 1000])
def test_integers_tie_in_masses(offset: int) -> None:
    size = FILTERED[0]
    z = torch.randint(-2, 3, (size.rows, size.dim)).float() + offset
    codebook = torch.randint(-2, 3, (size.codes, size.dim)).float() + offset
    z[::2, 3:], codebook[:, 3:] = offset, offset  # three dimensions: many codes are copies
    check_everywhere(z, codebook)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_bad_rows_and_bad_codes(value: float, share: float) -> None:
    size = FILTERED[0]
    z, codebook = size.z().float(), size.book().float()
    z[::7, 3] = value
    codebook[torch.rand(size.codes) < share, 5] = value
    wanted = vqvae_fast.nearest_code(z, codebook)
    for isa in INSTRUCTION_SETS or ["reference"]:
        if INSTRUCTION_SETS:
            compiled(isa)
        found = vqvae_fast.nearest_code(z, vqvae_fast.pack(codebook))
        assert all(same_bits(*pair) for pair in zip(found, wanted, strict=True)), isa


@needs_kernels
@pytest.mark.parametrize("count", COUNTS)
def test_the_filter_settles_few_rows(count: int) -> None:
    """Otherwise the tests above would compare the float search with itself."""
    z, codebook = torch.randn(count, 64), torch.randn(1031, 64)
    for isa in INSTRUCTION_SETS:
        compiled(isa)
        packed = vqvae_fast.pack(codebook).packed
        settled = settled_by_filter(z, codebook, packed)
        assert settled is None if isa not in FILTERING else settled >= 0.9 * count


@needs_kernels
@pytest.mark.parametrize("spoiled", ["a far code", "copies"])
def test_a_codebook_that_integers_do_not_serve_is_packed_in_floats(spoiled: str) -> None:
    z, codebook = torch.randn(61, 64), torch.randn(1031, 64)
    if spoiled == "copies":
        codebook[:] = codebook[torch.arange(1031) % 8]
    else:
        codebook[7] = 1e4
    check_everywhere(z, codebook)
    for isa in INSTRUCTION_SETS:
        compiled(isa)
        packed = vqvae_fast.pack(codebook).packed
        assert settled_by_filter(z, codebook, packed) is None


def trained_like(rows: int, dim: int) -> Tensor:
    """Vectors that spread far along a few directions, of which the filter makes 16 bits."""
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(1))).Q
    return torch.randn(rows, dim) * torch.logspace(1, -1, dim) @ turn


@needs_kernels
def test_wide_directions_serve_few_rows() -> None:
    z, codebook = trained_like(61, 64), trained_like(1031, 64)
    check_everywhere(z, codebook)
    for isa in filtering_sets():
        compiled(isa)
        packed = vqvae_fast.pack(codebook).packed
        assert settled_by_filter(z[:13], codebook, packed) >= 12


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("count", [1, 13, 50])
def test_threads_and_layouts_leave_no_trace(threads: int, count: int) -> None:
    torch.set_num_threads(threads)
    codebook = torch.randn(64, 1031).T
    packed = vqvae_fast.pack(codebook)
    z = torch.randn(64, 2 * count).T[::2]
    wanted = vqvae_fast.nearest_code(z.contiguous(), codebook.contiguous())
    found = vqvae_fast.nearest_code(z, packed)
    assert all(same_bits(*pair) for pair in zip(found, wanted, strict=True))


@needs_kernels
@pytest.mark.parametrize("count", [1, 13, 50])
def test_threads_divide_the_codes_of_a_large_book(count: int) -> None:
    """Three threads have two tiles of rows at most, and the book has 2 MiB in integers."""
    codebook = torch.randn(8203, 256)
    codebook[-1], codebook[4000:4003] = codebook[5], codebook[6]  # equal codes in several parts
    codebook[77] = float("nan")
    z = torch.randn(count, 256)
    z[0], z[count // 2] = codebook[-1], codebook[6]
    z[-1, 3] = float("inf") if count > 1 else z[-1, 3]
    torch.set_num_threads(1)
    wanted = vqvae_fast.quantize(z, codebook)
    for isa in INSTRUCTION_SETS:
        compiled(isa)
        packed = vqvae_fast.pack(codebook)
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found = vqvae_fast.quantize(z, packed)
            assert all(same_bits(*pair) for pair in zip(found, wanted, strict=True)), (isa, threads)


@pytest.mark.parametrize("count", [0, 1, 9, 61])
def test_several_books_in_one_object(count: int, dtype: torch.dtype) -> None:
    codebook = torch.randn(3, 300, 16).to(dtype)
    codebook[1] *= 1e-30 if dtype in (torch.float32, torch.float64) else 1  # of another form
    codebook[2] = float("nan")
    z = torch.randn(3, count, 16).to(dtype)
    packed = vqvae_fast.pack(codebook)
    assert packed.shape == codebook.shape
    for function in (vqvae_fast.nearest_code, vqvae_fast.quantize):
        found, wanted = function(z, packed), function(z, codebook)
        assert all(same_bits(*pair) for pair in zip(found, wanted, strict=True))


def test_quantize_has_the_values_and_the_gradient_to_z(dtype: torch.dtype) -> None:
    codebook, packed = (lambda c: (c, vqvae_fast.pack(c)))(torch.randn(300, 12).to(dtype))
    results = []
    for book in (codebook, packed):
        z = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(3)).to(dtype)
        z.requires_grad_()
        found = vqvae_fast.quantize(z, book, channel_first=True, commitment_weight=0.7)
        (found.loss + (found.quantized * torch.arange(5)).sum()).backward()
        results.append([*(part.detach() for part in found), z.grad])
    assert all(same_bits(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("num_quantizers", [None, 1, 3, 5])
@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 9, 7), (0, 7)])
def test_residual_stages(shape: tuple, num_quantizers: int | None, dtype: torch.dtype) -> None:
    codebooks = torch.randn(5, 300, 7).to(dtype) * 0.7 ** torch.arange(5)[:, None, None]
    codebooks = codebooks.to(dtype)
    z = torch.randn(shape).to(dtype)
    found = vqvae_fast.residual_nearest_code(
        z, vqvae_fast.pack(codebooks), num_quantizers=num_quantizers
    )
    wanted = vqvae_fast.residual_nearest_code(z, codebooks[:num_quantizers])
    assert found.indices.shape == (*shape[:-1], num_quantizers or 5)
    assert all(same_bits(*pair) for pair in zip(found, wanted, strict=True))
    plain = vqvae_fast.residual_nearest_code(z, codebooks, num_quantizers=num_quantizers)
    assert all(same_bits(*pair) for pair in zip(plain, wanted, strict=True))


@needs_kernels
@pytest.mark.parametrize(("rows", "codes", "dim"), [(20, 50, 4), (40, 600, 32)])
def test_damaged_bytes_give_an_index_of_a_code(rows: int, codes: int, dim: int) -> None:
    """Nothing is read out of bounds, whatever the bytes behind a right header are."""
    codebook, z = torch.randn(codes, dim), torch.randn(rows, dim)
    for isa in INSTRUCTION_SETS:
        compiled(isa)
        right = vqvae_fast.pack(codebook).packed
        for _ in range(400):
            damaged = right.clone()
            damaged[HEADER:] = torch.randint(0, 256, (len(right) - HEADER,), dtype=torch.uint8)
            quantized, indices, _ = torch.ops.vqvae_fast.quantize_packed(z, codebook, damaged)
            assert indices.min() >= 0
            assert indices.max() < codes
            assert torch.equal(quantized, codebook[indices])
