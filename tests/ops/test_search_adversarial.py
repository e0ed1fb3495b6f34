import math

import pytest
import torch
from search_oracle import check
from torch import Tensor

from vqvae_fast import settings

ROWS, CODES, DIM = 133, 101, 11


def near(codebook: Tensor, spread: float) -> Tensor:
    picked = codebook[torch.randint(len(codebook), (ROWS,))]
    return picked + spread * torch.randn(ROWS, DIM, dtype=torch.float64)


def normal(rows: int = CODES) -> Tensor:
    return torch.randn(rows, DIM, dtype=torch.float64)


def with_code(codebook: Tensor, value: float) -> Tensor:
    codebook[CODES // 2] = value
    return codebook


# All in float64, rounded to the dtype under test: z [ROWS, DIM], codebook [CODES, DIM].
CASES = {
    "mean 1000, spread 1": lambda: (1000 + normal(ROWS), 1000 + normal()),
    "mean 1e6, spread 1": lambda: (1e6 + normal(ROWS), 1e6 + normal()),
    "codebook 1e-6 wide around 1": lambda: (1 + 1e-6 * normal(ROWS), 1 + 1e-6 * normal()),
    "z around 0, codebook 1e-6 wide around 1": lambda: (normal(ROWS), 1 + 1e-6 * normal()),
    "one dead code at 1e4": lambda: (normal(ROWS), with_code(normal(), 1e4)),
    "one dead code at 1e18": lambda: (normal(ROWS), with_code(normal(), 1e18)),
    "one dead code at 1e30": lambda: (normal(ROWS), with_code(normal(), 1e30)),
    "the first code far away": lambda: (
        normal(ROWS),
        torch.cat([torch.full((1, DIM), -1e7, dtype=torch.float64), normal(CODES - 1)]),
    ),
    "half of the codes far away": lambda: (
        normal(ROWS),
        normal() + 1e5 * (torch.arange(CODES) % 2)[:, None],
    ),
    "z very far away": lambda: (1e7 + normal(ROWS), normal()),
    "z far away in all directions": lambda: (1e12 * normal(ROWS), normal()),
    "z equal to the codes": lambda: (lambda c: (near(c, 0.0), c))(1000 + normal()),
    "z very near the codes": lambda: (lambda c: (near(c, 1e-9), c))(normal()),
    "z midway between codes": lambda: (lambda c: (0.5 * (near(c, 0.0) + near(c, 0.0)), c))(
        normal()
    ),
    "tight clusters far apart": lambda: (
        lambda centres: (
            centres[torch.arange(ROWS) % 5] + 0.01 * normal(ROWS),
            centres[torch.arange(CODES) % 5] + 0.01 * normal(),
        )
    )(1000 * normal(5)),
    "collapsed book": lambda: (normal(ROWS), normal(1) + 1e-12 * normal()),
    "codes on a sphere, z at its centre": lambda: (
        1e-4 * normal(ROWS),
        torch.nn.functional.normalize(normal(), dim=1),
    ),
    "scales from 1e-12 to 1e12": lambda: (
        normal(ROWS) * torch.logspace(-12, 12, ROWS, dtype=torch.float64)[:, None],
        normal() * torch.logspace(12, -12, CODES, dtype=torch.float64)[:, None],
    ),
    "a scale for each dimension": lambda: (
        normal(ROWS) * torch.logspace(-9, 9, DIM, dtype=torch.float64),
        normal() * torch.logspace(-9, 9, DIM, dtype=torch.float64),
    ),
    "squares underflow": lambda: (1e-25 * normal(ROWS), 1e-25 * normal()),
    "subnormal": lambda: (1e-41 * normal(ROWS), 1e-41 * normal()),
    "subnormal z": lambda: (1e-41 * normal(ROWS), normal()),
    "subnormal codes": lambda: (normal(ROWS), 1e-41 * normal()),
    "smallest subnormals": lambda: (
        torch.randint(-3, 4, (ROWS, DIM)) * 2.0**-149,
        torch.randint(-3, 4, (CODES, DIM)) * 2.0**-149,
    ),
    "scores overflow": lambda: (1e30 * normal(ROWS), 1e30 * normal()),
    "the largest numbers": lambda: (
        3e38 * (2 * torch.rand(ROWS, DIM, dtype=torch.float64) - 1),
        3e38 * (2 * torch.rand(CODES, DIM, dtype=torch.float64) - 1),
    ),
    "only z is huge": lambda: (1e35 * normal(ROWS), normal()),
    "only the codes are huge": lambda: (normal(ROWS), 1e35 * normal()),
    "heavy tails": lambda: (normal(ROWS) / normal(ROWS), normal() / normal()),
}
HALF = {
    "subnormal": lambda: (3e-7 * normal(ROWS), 3e-7 * normal()),
    "largest": lambda: (
        65504 * torch.randint(-1, 2, (ROWS, DIM)).double(),
        65504 * torch.randint(-1, 2, (CODES, DIM)).double(),
    ),
    "from subnormal to largest": lambda: (
        normal(ROWS).sign() * torch.logspace(-7, 4.8, ROWS, dtype=torch.float64)[:, None],
        normal().sign() * torch.logspace(-7, 4.8, CODES, dtype=torch.float64)[:, None],
    ),
    "offset": lambda: (100 + normal(ROWS), 100 + normal()),
}
DOUBLE = {
    "offset 1e8": lambda: (1e8 + normal(ROWS), 1e8 + normal()),
    "offset 1e15": lambda: (1e15 + normal(ROWS), 1e15 + normal()),
    "around 1e-150": lambda: (1e-150 * normal(ROWS), 1e-150 * normal()),
    "squares are subnormal": lambda: (1e-155 * normal(ROWS), 1e-155 * normal()),
    "squares underflow": lambda: (1e-170 * normal(ROWS), 1e-170 * normal()),
    "subnormal": lambda: (1e-310 * normal(ROWS), 1e-310 * normal()),
    "around 1e150": lambda: (1e150 * normal(ROWS), 1e150 * normal()),
    "one dead code at 1e162": lambda: (1e150 * normal(ROWS), with_code(1e150 * normal(), 1e162)),
    "squares overflow": lambda: (1e200 * normal(ROWS), 1e200 * normal()),
    "the largest numbers": lambda: (1e307 * normal(ROWS), 1e307 * normal()),
}


@pytest.mark.parametrize("case", CASES)
def test_values(implementation, case):
    z, codebook = (part.float() for part in CASES[case]())
    check(implementation.nearest_code(z, codebook), z, codebook)


@pytest.mark.parametrize("case", CASES)
def test_values_in_float64(implementation, case):
    z, codebook = CASES[case]()
    check(implementation.nearest_code(z, codebook), z, codebook)


@pytest.mark.parametrize("case", DOUBLE)
def test_values_of_float64_alone(implementation, case):
    z, codebook = DOUBLE[case]()
    check(implementation.nearest_code(z, codebook), z, codebook)


@pytest.mark.parametrize("case", CASES)
def test_values_in_bfloat16(implementation, case):
    z, codebook = (part.bfloat16() for part in CASES[case]())
    check(implementation.nearest_code(z, codebook), z, codebook)


@pytest.mark.parametrize("case", HALF)
def test_values_in_float16(implementation, case):
    z, codebook = (part.half() for part in HALF[case]())
    check(implementation.nearest_code(z, codebook), z, codebook)


def test_every_float16(implementation):
    """Each finite float16 as a book of its own kind: widened exactly, it finds itself."""
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    every = bits.view(torch.float16)
    every = every[every.isfinite() & ~((every == 0) & every.signbit())]
    # 63,487 rows against 63,487 codes would be long: neighbouring ones are what could be confused.
    interpreted = settings.current.triton_interprets  # which takes its time
    parts = every.sort().values.split(1024 if interpreted else 4096)
    for part in parts[:: 16 if interpreted else 1]:
        indices, distances = implementation.nearest_code(part[:, None], part[:, None])
        assert torch.equal(indices, torch.arange(len(part)))
        assert (distances == 0).all()


@pytest.mark.parametrize("offset", [0, 1000, -(2**20)])
@pytest.mark.parametrize("dim", [1, 2, 8, 13])
def test_integers_tie_in_masses(implementation, offset, dim):
    """Small integers: all arithmetic is exact, so every tie is one and the lowest index is due."""
    z = torch.randint(-2, 3, (300, dim)).float() + offset
    codebook = torch.randint(-2, 3, (517, dim)).float() + offset
    check(implementation.nearest_code(z, codebook), z, codebook, exact_ties=True)


def test_integers_tie_in_every_dtype(implementation, dtype):
    z = torch.randint(-2, 3, (300, 3)).to(dtype)
    codebook = torch.randint(-2, 3, (517, 3)).to(dtype)
    check(implementation.nearest_code(z, codebook), z, codebook, exact_ties=True)


@pytest.mark.parametrize("scale", [2.0**-160, 2.0**-130, 2.0**-70, 2.0**60, 2.0**120])
def test_integers_tie_at_every_scale(implementation, scale):
    """Scaled by a power of two, nothing is rounded either; in float32 some of it overflows."""
    dtype = torch.float64 if scale < 2.0**-140 else torch.float32
    z = (torch.randint(-2, 3, (300, 3)).double() * scale).to(dtype)
    codebook = (torch.randint(-2, 3, (517, 3)).double() * scale).to(dtype)
    check(implementation.nearest_code(z, codebook), z, codebook, exact_ties=True)


@pytest.mark.parametrize("scale", [2.0**-1070, 2.0**-560, 2.0**-520, 2.0**500, 2.0**1000])
def test_float64_ties_beyond_its_squares(implementation, scale):
    """Squares that underflow to 0 or overflow to infinity tie, and the lowest index wins."""
    z = torch.randint(-2, 3, (200, 3)).double() * scale
    codebook = torch.randint(-2, 3, (97, 3)).double() * scale
    check(implementation.nearest_code(z, codebook), z, codebook, exact_ties=True)


def test_float64_ties_beside_a_code_whose_square_overflows(implementation):
    codebook = torch.randint(-2, 3, (517, 3)).double() * 2.0**500
    codebook[300] = 2.0**540
    z = torch.randint(-2, 3, (200, 3)).double() * 2.0**500 + 2.0**499
    check(implementation.nearest_code(z, codebook), z, codebook, exact_ties=True)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30, -7e20])
def test_all_codes_equal(implementation, value):
    z, codebook = torch.randn(70, 5), torch.full((130, 5), value)
    indices, _ = implementation.nearest_code(z, codebook)
    assert (indices == 0).all()


def test_signed_zeros_tie(implementation, dtype):
    codebook = torch.zeros(60, 4, dtype=dtype)
    codebook[::2] = -0.0
    z = torch.zeros(10, 4, dtype=dtype)
    z[::2] = -0.0
    indices, distances = implementation.nearest_code(z, codebook)
    assert (indices == 0).all()
    assert (distances == 0).all()


@pytest.mark.parametrize("dim", [1, 8, 70])
def test_near_ties_one_ulp_apart(implementation, dtype, dim):
    """Codes that differ from one another by one ulp in one element, far from the origin."""
    base = torch.full((dim,), 1000.0, dtype=dtype)
    up = torch.nextafter(base, torch.full_like(base, torch.inf))
    codebook = base.repeat(150, 1)
    place = torch.randint(dim, (150,))
    codebook[torch.arange(150), place] = up[place]
    codebook[torch.randperm(150)[:20]] = base
    z = codebook[torch.randint(150, (200,))].clone()
    z[:100] += torch.randn(100, dim).to(dtype)
    check(implementation.nearest_code(z, codebook), z, codebook)


def test_zero_distance_is_zero(implementation, dtype):
    codebook = (1000 + torch.randn(300, 24)).to(dtype)
    pick = torch.randperm(300)
    indices, distances = implementation.nearest_code(codebook[pick], codebook)
    assert (distances == 0).all()
    assert torch.equal(codebook[indices], codebook[pick])


# ---- NaN and infinity --------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("codes", [1, 60, 9000])
def test_bad_rows_of_z(implementation, dtype, bad, codes):
    z, codebook = torch.randn(70, 5).to(dtype), torch.randn(codes, 5).to(dtype)
    rows = [0, 13, 63, 64, 69]
    z[rows, torch.tensor([0, 1, 2, 3, 4])] = bad
    indices, distances = implementation.nearest_code(z, codebook)
    assert (indices[rows] == 0).all()
    expected = torch.full((5,), math.nan if math.isnan(bad) else math.inf, dtype=distances.dtype)
    torch.testing.assert_close(distances[rows], expected, equal_nan=True)
    good = torch.ones(70, dtype=torch.bool)
    good[rows] = False
    check((indices[good], distances[good]), z[good], codebook)


def test_nan_beside_infinity(implementation):
    z = torch.tensor([[math.inf, math.nan], [math.nan, math.inf], [math.inf, -math.inf]])
    indices, distances = implementation.nearest_code(z, torch.randn(9, 2))
    assert torch.equal(indices, torch.zeros(3, dtype=torch.int64))
    assert distances.isnan().tolist() == [True, True, False]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_codes_are_never_chosen(implementation, dtype, bad):
    z, codebook = torch.randn(70, 5).to(dtype), torch.randn(130, 5).to(dtype)
    where = torch.rand(130) < 0.6
    where[0] = True
    codebook[where, torch.randint(5, (int(where.sum()),))] = bad
    z[0] = math.inf
    z[1] = math.nan
    indices, distances = implementation.nearest_code(z, codebook)
    check((indices[2:], distances[2:]), z[2:], codebook)
    # Infinitely far from every code: the first that may be chosen. A NaN: 0 by contract.
    assert indices[0] == int((~where).nonzero()[0])
    assert indices[1] == 0
    assert distances[1].isnan()


def test_one_good_code_among_many(implementation):
    codebook = torch.full((9001, 3), math.nan)
    codebook[8997] = 1e30
    z = torch.randn(9, 3)
    indices, distances = implementation.nearest_code(z, codebook)
    assert (indices == 8997).all()
    assert (distances == torch.inf).all()  # 3e60 is beyond float32


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_good_code(implementation, dtype, bad):
    z, codebook = torch.randn(70, 5).to(dtype), torch.randn(60, 5).to(dtype)
    codebook[:, 2] = bad
    quantized, indices, distances = implementation.quantize(z, codebook)
    assert (indices == 0).all()
    assert not distances.isfinite().any()
    assert torch.equal(quantized[:, :2], codebook[0, :2].expand(70, 2))


def test_a_bad_code_does_not_spoil_the_scale(implementation):
    codebook = torch.randn(60, 5)
    codebook[7] = torch.tensor([math.nan, 3e38, 3e38, 0, 0])
    z = torch.randn(70, 5)
    check(implementation.nearest_code(z, codebook), z, codebook)


@pytest.mark.parametrize("dim", [16, 256, 4096])
def test_roundings_that_all_go_one_way(implementation, dim):
    """Every addition to the nearer code's float32 score is rounded down by almost half a unit in
    the last place, every addition to the farther one's up: almost a third of the proven bound."""
    z, codebook = torch.zeros(1, dim), torch.zeros(100, dim)
    z[0, 0], z[0, 2:] = 1.125, 2.0**-12
    nearer, farther = 61, 22
    codebook[[nearer, farther], 0] = 1.0
    codebook[nearer, 2:] = 2.0**-13 * (1 - 2.0**-10)
    codebook[farther, 2:] = 2.0**-13 * (1 + 2.0**-10)
    codebook[farther, 1] = dim**0.5 * 2.0**-13
    result = implementation.nearest_code(z, codebook)
    assert result[0].item() == nearer
    check(result, z, codebook)


@pytest.mark.parametrize("dim", [2, 5, 33, 200])
def test_pairs_that_half_precision_cannot_tell_apart(implementation, dim):
    """A row lies between two codes, and a score in float16 takes the farther half of the time."""
    between = 30 * torch.randn(325, dim)
    sides = torch.nn.functional.normalize(torch.randn(650, dim), dim=1)
    codebook = between.repeat(2, 1) + sides
    z = between[torch.randint(325, (300,))] + 1e-3 * torch.randn(300, dim)
    check(implementation.nearest_code(z, codebook), z, codebook)
