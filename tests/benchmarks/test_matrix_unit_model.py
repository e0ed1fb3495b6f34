"""The model of the matrix units, against sums worked out by hand and a second, scalar way."""

from fractions import Fraction

import numpy as np
import pytest

from benchmarks.matrix_unit import UNITS, magnitude, matrix_product

EVERY_UNIT = pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)


def product(row, column, accumulator, unit):
    """One dot product as a Python float."""
    a, b = np.array([row], np.float16), np.array([column], np.float16).T
    (result,) = matrix_product(a, b, np.array([[accumulator]], np.float32), unit).flat
    return float(result)


def by_hand(row, column, accumulator, unit):
    """The rule once more: scalar, in exact fractions."""

    def exponent(x, least):
        e = least
        while abs(x) >= Fraction(2) ** (e + 1):
            e += 1
        return e

    total = Fraction(float(accumulator))
    pairs = [(Fraction(float(x)), Fraction(float(y))) for x, y in zip(row, column, strict=True)]
    for first in range(0, len(pairs), unit.products):
        step = pairs[first : first + unit.products]
        largest = max(
            [exponent(x, -14) + exponent(y, -14) for x, y in step if x and y]
            + [exponent(total, -126)]
        )
        ulp = Fraction(2) ** (largest - unit.fraction_bits)
        kept = sum(int(term / ulp) for term in [total, *(x * y for x, y in step)]) * ulp
        last = Fraction(2) ** (exponent(kept, -126) - 23)
        total = int(kept / last) * last
    return float(total)


def test_the_units_are_the_published_ones():
    published = {"volta": (4, 23), "ampere": (8, 24), "hopper": (16, 25)}
    assert {name: tuple(unit) for name, unit in UNITS.items()} == {
        name: (*numbers, False) for name, numbers in published.items()
    }


@pytest.mark.quick(4)
@EVERY_UNIT
@pytest.mark.parametrize("scales", [(0, 0), (-6, 6), (-24, 15), (-24, -14)], ids=str)
def test_it_agrees_with_exact_fractions(unit, scales):
    """Numbers of one size, of many sizes, and subnormal ones; some zeros among them."""
    rng = np.random.default_rng(3)
    for _ in range(100):
        exponents = rng.integers(scales[0], scales[1] + 1, (2, 40)).astype(float)
        row, column = (rng.uniform(-1.9, 1.9, (2, 40)) * 2.0**exponents).astype(np.float16)
        row[rng.random(40) < 0.1] = 0
        accumulator = np.float32(rng.normal() * 2.0 ** rng.integers(-60, 20))
        assert product(row, column, accumulator, unit) == by_hand(row, column, accumulator, unit)


@EVERY_UNIT
def test_a_matrix_is_made_of_its_dot_products(unit):
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(5, 48)).astype(np.float16), rng.normal(size=(48, 7)).astype(np.float16)
    accumulator = rng.normal(size=(5, 7)).astype(np.float32)
    result = matrix_product(a, b, accumulator, unit)
    assert result.dtype == np.float32
    for i in range(5):
        for j in range(7):
            assert result[i, j] == product(a[i], b[:, j], accumulator[i, j], unit)


@pytest.mark.parametrize(("name", "kept"), [("volta", 23), ("ampere", 24), ("hopper", 25)])
def test_bits_below_the_fraction_are_lost(name, kept):
    """1 - 1 + 2^-kept survives beside the 1, and half of it does not."""
    unit = UNITS[name]
    for bits, survives in ((kept, True), (kept + 1, False)):
        small = 2.0 ** -(bits - 12)
        result = product([1, -1, 2.0**-12], [1, 1, small], 0, unit)
        assert result == (2.0**-bits if survives else 0)


@EVERY_UNIT
def test_a_subnormal_factor_counts_as_the_smallest_normal_one(unit):
    """2^-24 times 2^15 is 2^-9, but is aligned to 2^1; with normal factors 2^-9 is aligned to."""
    small = 2.0**-13 * 1.5 * 2.0 ** -(unit.fraction_bits - 13)
    factors = [2.0**-13, small * 2.0**13]
    assert product([2.0**-24, factors[0]], [2.0**15, factors[1]], 0, unit) == 2.0**-9
    assert product([2.0**-12, factors[0]], [2.0**3, factors[1]], 0, unit) > 2.0**-9


def test_a_zero_aligns_only_where_it_is_said_to():
    small = 2.0**-12
    for zero_aligns, expected in ((False, small * small), (True, 0.0)):
        unit = UNITS["hopper"]._replace(zero_aligns=zero_aligns)
        assert product([0, small], [2.0**15, small * 2.0**-1], 0, unit) == expected / 2


@EVERY_UNIT
def test_sums_are_rounded_towards_zero(unit):
    largest = 2.0**24 - 1  # 24 bits
    for sign in (1, -1):
        assert product([sign * 2.0**10], [2.0**15 / 2.0], sign * largest, unit) == sign * (
            2.0**24 + 2.0**24 - 2
        )


@EVERY_UNIT
def test_infinities_and_nan_are_ieee(unit):
    inf = float("inf")
    assert product([inf, 1], [1, 1], 0, unit) == inf
    assert np.isnan(product([inf, inf], [1, -1], 0, unit))
    assert np.isnan(product([inf], [0], 1, unit))
    assert product([1], [1], -inf, unit) == -inf
    assert product([60000], [60000], 3.4028235e38, unit) == pytest.approx(3.4028235e38)


@EVERY_UNIT
def test_nothing_is_lost_of_zeros_and_of_no_columns(unit):
    assert product([0, 0], [0, 5], 0, unit) == 0
    assert product([0, 0], [0, 5], 0.1, unit) == np.float32(0.1)
    accumulator = np.full((2, 3), 0.3, np.float32)
    nothing = np.zeros((2, 0), np.float16), np.zeros((0, 3), np.float16)
    np.testing.assert_array_equal(matrix_product(*nothing, accumulator, unit), accumulator)


@EVERY_UNIT
def test_a_step_of_sixteen_stays_within_what_the_bound_allows(unit):
    """64 units of 2^-24; the published units lose far less (docs/exactness.md)."""
    rng = np.random.default_rng(5)
    most = 0.0
    for low in (-1, -12, -24):
        size = (64, 16)
        a, b = (
            (rng.normal(size=s) * 2.0 ** rng.integers(low, 8, s)).astype(np.float16)
            for s in (size, size[::-1])
        )
        accumulator = rng.normal(size=(64, 64)).astype(np.float32)
        exact = a.astype(float) @ b.astype(float) + accumulator
        lost = np.abs(matrix_product(a, b, accumulator, unit) - exact)
        most = max(most, (lost / magnitude(a, b, accumulator)).max() * 2**24)
    assert 0.5 < most < 64


def test_the_magnitude_counts_a_subnormal_as_normal():
    one = np.ones((1, 1), np.float16)
    zero = np.zeros((1, 1), np.float32)
    assert magnitude(one, one, zero).item() == 1
    assert magnitude(one * np.float16(2.0**-24), one, zero).item() == 2.0**-14
    assert magnitude(one, one, zero - 8).item() == 9


def test_wrong_arguments_end_in_a_sentence():
    half, single = np.zeros((2, 2), np.float16), np.zeros((2, 2), np.float32)
    with pytest.raises(TypeError, match=r"must be float16 .* got float32, float16, float32"):
        matrix_product(single, half, single, UNITS["hopper"])
    with pytest.raises(ValueError, match=r"got \[2, 2\], \[1, 2\], \[2, 2\]"):
        matrix_product(half, half[:1], single, UNITS["hopper"])


# What docs/exactness.md says that 16 products may lose, in units of 2^-24 of the magnitude to which
# their steps align, and what its bound allows.
MOST_LOST = {"volta": 48, "ampere": 22, "hopper": 10.5}
ALLOWED = 64


@pytest.mark.parametrize("name", UNITS)
def test_what_16_products_lose(name):
    """Beside an accumulator of 1 all products are cut off but one, which the sum rounds off."""
    unit = UNITS[name]
    row, column = np.full((2, 16), 2.0**-12 * (1 - 2.0**-10), np.float16)
    row *= np.float16(2.0 ** (24 - unit.fraction_bits))
    row[:: unit.products] = 2.0**-11 * (1 - 2.0**-10)
    accumulator = np.float32(1)
    exact = 1 + float(row.astype(np.float64) @ column.astype(np.float64))
    lost = exact - product(row, column, accumulator, unit)
    scale = magnitude(row[None], column[:, None], np.array([[accumulator]])).item()
    units = lost / (2.0**-24 * scale)
    assert 0.66 * MOST_LOST[name] < units <= MOST_LOST[name] <= ALLOWED
