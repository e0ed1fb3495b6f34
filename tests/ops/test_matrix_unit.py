"""The Triton search and residual VQ under the rules by which real matrix units add, with data made
to hurt them: where products are far below the exponent to which a step aligns them, they vanish.

All numbers here are multiples of 2^-24 that float16 holds, and the nine codes from which the search
takes its centre and its scale are zeros. So both leave the numbers alone, which reach the matrix
unit as they are written here.
"""

import pytest
import torch
from oracle import check, wrong_rows
from test_residual import check_all
from torch import Tensor

from benchmarks.matrix_unit import UNITS, Unit, matrix_product
from vqvae_fast import settings

if not settings.current.triton_interprets:
    pytest.skip("needs a process of Triton's interpreter", allow_module_level=True)

import triton
import triton.language as tl

from vqvae_fast.backends.triton.bound import lowest_score
from vqvae_fast.backends.triton.prepare import ROUNDING

pytestmark = pytest.mark.interpreted

ROWS, CODES = 32, 300
SMALLEST = 2.0**-24  # of float16's subnormal numbers
DIMS = [8, 16, 64, 130, 272]


def float16(t: Tensor) -> Tensor:
    """t in numbers that float16 holds."""
    return t.half().float()


def book(codes: Tensor) -> Tensor:
    """codes [K, D] with zeros where the search takes its centre and its scale from."""
    codes = codes.clone()
    codes[(len(codes) - 1) * torch.arange(9) // 8] = 0
    return codes


def integers(most: int, *shape: int) -> Tensor:
    return torch.randint(-most, most + 1, shape).float()


def powers(low: float, high: float, *shape: int) -> Tensor:
    """Numbers of either sign whose magnitudes spread evenly over the exponents low to high."""
    signs = 2.0 * torch.randint(2, shape) - 1
    return signs * 2.0 ** (low + (high - low) * torch.rand(shape))


def subnormal_codes(dim: int) -> tuple[Tensor, Tensor]:
    """Codes of {0, 1} 2^-24. One element of a row aligns a step far above its other products.

    The nearer code wins by products that a unit cuts off, all of them within 16 elements; the
    farther ones are in other groups, so that the scan names one of them.
    """
    ones = min(dim, 16)
    near, far = torch.zeros(dim), torch.zeros(dim)
    near[:ones], far[: ones * 5 // 8] = SMALLEST, SMALLEST
    codes = torch.zeros(512, dim)
    places = torch.arange(1, 4)[:, None] * 128 + torch.tensor([3, 5, 7, 9])
    codes[places.flatten()] = far
    codes[11] = near
    z = torch.zeros(ROWS, dim)
    z[::2] = 3000 * torch.sign(torch.randn(ROWS // 2, dim))
    many = torch.tensor([127, 255]).repeat_interleave(ROWS // 4)
    z[1::2, :ones] = many[:, None] * SMALLEST
    z[1::2, :ones:8] = 0.25  # one in each step, also of units that add eight products
    return z, codes


def subnormals_on_both_sides(dim: int) -> tuple[Tensor, Tensor]:
    z, codes = integers(1023, ROWS, dim) * SMALLEST, integers(1023, CODES, dim) * SMALLEST
    z[::3, 0] = 0.25
    z[1::3, dim // 2] = 2.0**-14
    return z, book(codes)


def around_the_smallest_normal_number(dim: int) -> tuple[Tensor, Tensor]:
    z, codes = integers(40, ROWS, dim), integers(40, CODES, dim)
    return (1024 + z) * SMALLEST, book((1024 + codes) * SMALLEST)


def wide_ranges_in_one_row(dim: int) -> tuple[Tensor, Tensor]:
    z, codes = powers(-24, 10, ROWS, dim), powers(-24, 10, CODES, dim)
    return float16(z), book(float16(codes))


def cancellation(dim: int) -> tuple[Tensor, Tensor]:
    """z.e is a sum of large products that cancel, and of one that decides."""
    z, codes = torch.zeros(ROWS, dim), torch.zeros(CODES, dim)
    half = dim // 2
    z[:, :half], codes[:, :half] = powers(-2, 6, ROWS, half), powers(-2, 2, CODES, 1)
    z[:, half : 2 * half] = -z[:, :half]
    codes[:, half : 2 * half] = codes[:, :half]
    codes += integers(64, CODES, dim) * SMALLEST
    z[:, -1] += powers(-12, 0, ROWS)
    return float16(z), book(float16(codes))


def sizes_far_apart(dim: int) -> tuple[Tensor, Tensor]:
    sizes = 2.0 ** torch.linspace(-24, 6, CODES)
    codes = book(float16(torch.randn(CODES, dim) * sizes[torch.randperm(CODES), None]))
    near = codes[torch.randint(CODES, (ROWS,))]
    return float16(near * (1 + 0.1 * torch.randn(ROWS, dim))), codes


def large_rows_and_tiny_codes(dim: int) -> tuple[Tensor, Tensor]:
    return float16(powers(8, 11, ROWS, dim)), book(integers(3, CODES, dim) * SMALLEST)


CASES = {
    case.__name__: case
    for case in (
        subnormal_codes,
        subnormals_on_both_sides,
        around_the_smallest_normal_number,
        wide_ranges_in_one_row,
        cancellation,
        sizes_far_apart,
        large_rows_and_tiny_codes,
    )
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.mark.quick(interpreted=7)
@pytest.mark.parametrize("dim", DIMS)
def test_the_nearest_code_is_found(implementation, case, dim):
    z, codebook = case(dim)
    check(implementation.nearest_code(z, codebook), z, codebook)


@pytest.mark.parametrize("dim", [8, 128])
def test_every_residual_stage_finds_the_nearest_code(case, dim):
    z, codebook = case(dim)
    books = torch.stack([codebook, codebook.roll(dim // 3, dims=1)])
    check_all(z[: ROWS // 2], books)


@triton.jit
def bound_kernel(
    scores, distances, row_norms, max_norm, dim, bounds,
    ROWS: tl.constexpr, NORMAL: tl.constexpr, EPSILON: tl.constexpr, SUBNORMAL: tl.constexpr,
    LARGEST: tl.constexpr,
):  # fmt: skip
    """The bounds of rows and codes that packing leaves alone, unscaled and without a base."""
    row = tl.arange(0, ROWS)
    norm = tl.load(max_norm)
    bound = lowest_score(
        tl.load(scores + row), tl.load(distances + row), norm * 0 + 1.0, norm * 0, norm, norm * 0,
        dim * 0, norm * 0, tl.load(row_norms + row), dim,
        0, EPSILON, SUBNORMAL, NORMAL, LARGEST,
    )  # fmt: skip
    tl.store(bounds + row, bound)


def rows_below_their_bound(z: Tensor, code: Tensor, unit: Unit, **rounding: float) -> int:
    """How many rows' packed score with their nearest code is lower than the bound that it gives."""
    start = (-0.5 * code.square().sum()).expand(len(z), 1)
    packed = matrix_product(z.half().numpy(), code.half()[:, None].numpy(), start.numpy(), unit)
    wide, e = z.double(), code.double()
    scores = (e * (wide - e / 2)).sum(1).float()
    bounds = torch.empty(len(z))
    bound_kernel[(1,)](
        scores, (wide - e).square().sum(1), wide.norm(dim=1).float(), e.norm().float()[None],
        z.shape[1], bounds, ROWS=len(z), **rounding,
    )  # fmt: skip
    return int((torch.from_numpy(packed)[:, 0] < bounds).sum())


@pytest.mark.parametrize("dim", [16, 64])
def test_a_bound_that_forgets_the_subnormals_is_too_high(matrix_unit, dim):
    """Magnitudes are not what the unit aligns to."""
    z, codebook = subnormal_codes(dim)
    rounding = ROUNDING[torch.float16]
    assert rows_below_their_bound(z, codebook[11], UNITS[matrix_unit], **rounding) == 0
    forgetful = {**rounding, "NORMAL": 0.0}
    assert rows_below_their_bound(z, codebook[11], UNITS[matrix_unit], **forgetful) > ROWS // 8


def products_that_additions_lose(dim: int) -> tuple[Tensor, Tensor]:
    """Two codes that may win: what the nearer one gains, all additions of a unit leave out.

    The first product is 1.5 and the last -1.5. Between them the nearer code has products below
    2^-25, of which no step keeps any; the farther one has half of their sum in a single product.
    Both rise above the other codes by the same product.
    """
    z, codes = torch.zeros(ROWS, dim), torch.zeros(CODES, dim)
    nearer, farther = 150, 20
    both = torch.tensor([nearer, farther])
    z[:, 0], z[:, -1], codes[:, 0], codes[:, -1] = 24.0, -24.0, 2.0**-4, 2.0**-4
    z[:, -2], codes[both, -2] = 0.125, 2.0**-4
    z[:, 1:-3], codes[nearer, 1:-3] = float16(torch.tensor(0.9 * 2.0**-11)), 2.0**-14
    z[:, -3], codes[farther, -3] = float16((dim - 4) * z[0, 1] / 2), 2.0**-14
    return z, book(codes)


@pytest.mark.parametrize("dim", [128, 256])
def test_products_that_additions_lose_are_within_the_bound(implementation, dim):
    z, codebook = products_that_additions_lose(dim)
    assert not wrong_rows(implementation.nearest_code(z, codebook)[0], z, codebook)
