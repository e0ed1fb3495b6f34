import math

import pytest
import torch
from adversarial import CASES, DOUBLE, HALF, SHORT, SMALL
from oracle import check, wrong_rows

from vqvae_fast import settings

pytestmark = pytest.mark.interpreted


@pytest.mark.quick(interpreted=29)
@pytest.mark.parametrize("case", CASES)
def test_values(implementation, case):
    z, codebook = (part.float() for part in CASES[case](SMALL))
    check(implementation.nearest_code(z, codebook), z, codebook)


@pytest.mark.parametrize("case", CASES)
def test_values_in_float64(implementation, case):
    z, codebook = CASES[case](SMALL)
    check(implementation.nearest_code(z, codebook), z, codebook)


@pytest.mark.parametrize("case", DOUBLE)
def test_values_of_float64_alone(implementation, case):
    z, codebook = DOUBLE[case](SMALL)
    check(implementation.nearest_code(z, codebook), z, codebook)


@pytest.mark.quick(interpreted=3)
@pytest.mark.parametrize("case", CASES)
def test_values_in_bfloat16(implementation, case):
    z, codebook = (part.bfloat16() for part in CASES[case](SMALL))
    check(implementation.nearest_code(z, codebook), z, codebook)


@pytest.mark.quick(interpreted=2)
@pytest.mark.parametrize("case", HALF)
def test_values_in_float16(implementation, case):
    z, codebook = (part.half() for part in HALF[case](SMALL))
    check(implementation.nearest_code(z, codebook), z, codebook)


@pytest.mark.quick(interpreted=2)
@pytest.mark.parametrize("case", CASES)
def test_values_of_short_codes(implementation, case):
    z, codebook = (part.float() for part in CASES[case](SHORT))
    check(implementation.nearest_code(z, codebook), z, codebook)


def test_every_float16(implementation):
    """Each finite float16 as a book of its own kind: widened exactly, it finds itself."""
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    every = bits.view(torch.float16)
    every = every[every.isfinite() & ~((every == 0) & every.signbit())]
    # 63,487 rows against 63,487 codes would be long: neighbouring ones are what could be confused.
    interprets = settings.current.triton_interprets  # which takes its time
    parts = every.sort().values.split(200 if interprets else 1024)
    for part in parts[:: 40 if interprets else 1]:
        indices, distances = implementation.nearest_code(part[:, None], part[:, None])
        assert torch.equal(indices, torch.arange(len(part)))
        assert (distances == 0).all()


@pytest.mark.quick(interpreted=2)
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
    codes = min(codes, 700) if settings.current.triton_interprets else codes  # several tiles
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


@pytest.mark.parametrize("dim", [16, 200, 2000])
def test_few_rows_that_float32_cannot_tell_apart(implementation, dim):
    """A row lies between two codes. The squares summed in float32 take the farther one for many
    rows, so whatever measures a few rows must know how far such a sum can be off."""
    between = torch.randn(100, dim)
    sides = torch.nn.functional.normalize(torch.randn(100, dim), dim=1)
    codebook = torch.cat([between + sides, between - sides])
    z = between + 1e-7 * torch.randn(100, dim)
    in_float32 = torch.stack([(row - codebook).square().sum(dim=1).argmin() for row in z])
    assert wrong_rows(in_float32, z, codebook) >= 3
    # Triton has no form for few rows: its interpreter, which takes its time, sees some of them.
    for few in z.split(7)[: 2 if settings.current.triton_interprets else None]:
        indices, distances = implementation.nearest_code(few, codebook)
        check((indices, distances), few, codebook)
        assert not wrong_rows(indices, few, codebook)
