"""A model of the arithmetic of NVIDIA's matrix units: how a step adds float16 products.

A step takes L products and the accumulator. It aligns them all to the largest *nominal* exponent
among them, cuts each off F bits below it, adds the rest exactly, and rounds the sum towards zero to
float32. A nominal exponent of a product is the sum of its factors' exponents, as they are
stored: a subnormal factor counts as 2^-14, so the cut can lie far above the numbers themselves.

Source: the rule that MMA-Sim states (Microsoft, https://github.com/microsoft/MMA-Sim), which its
authors report to agree with the devices in every bit. `benchmarks.gpu_first` compares it with the
device at hand.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_LEAST_HALF = -14  # the exponent of float16's smallest normal number, and of its subnormal ones
_LEAST_SINGLE = -126
_ABSENT = -(1 << 20)  # below every exponent


class Unit(NamedTuple):
    """The arithmetic of a matrix unit.

    Attributes:
        products: L, the products that a step adds to the accumulator at once.
        fraction_bits: F, the bits below the largest nominal exponent that a step keeps.
        zero_aligns: a factor of zero counts as 2^-14, as a subnormal one does. The published rule
            leaves zeros out; a bound must hold either way.
    """

    products: int
    fraction_bits: int
    zero_aligns: bool = False


# Each unit has the name of the first architecture with it.
UNITS = {
    "volta": Unit(4, 23),  # and Turing
    "ampere": Unit(8, 24),  # and Ada
    "hopper": Unit(16, 25),  # and Blackwell
}


def matrix_product(
    a: NDArray[np.float16], b: NDArray[np.float16], accumulator: NDArray[np.float32], unit: Unit
) -> NDArray[np.float32]:
    """Return A b + accumulator, in every bit as the unit computes it.

    Args:
        a: [M, K].
        b: [K, N].
        accumulator: [M, N].
        unit: one of :data:`UNITS`, or any other.

    Returns:
        float32 [M, N].
    """
    _check(a, b, accumulator)
    total = accumulator
    for first in range(0, a.shape[1], unit.products):
        step = slice(first, first + unit.products)
        total = _step(a[:, step], b[step], total, unit)
    return total


def magnitude(
    a: NDArray[np.float16], b: NDArray[np.float16], accumulator: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the magnitude [M, N] to which the error of A b + accumulator is compared.

    The magnitude is the larger of two: the largest nominal magnitude of a product or the
    accumulator, and the sum of all absolute values. The bound of docs/exactness.md stays above
    both.
    """
    _check(a, b, accumulator)
    products = np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64))
    largest = _largest_exponent(a, b, accumulator, zero_aligns=False)
    return np.maximum(np.ldexp(1.0, largest), products + np.abs(accumulator.astype(np.float64)))


def _check(a: NDArray, b: NDArray, accumulator: NDArray) -> None:
    found = (a.dtype, b.dtype, accumulator.dtype)
    if found != (np.float16, np.float16, np.float32):
        raise TypeError(
            f"a and b must be float16 and the accumulator float32, got {', '.join(map(str, found))}"
        )
    shapes = (a.shape, b.shape, accumulator.shape)
    if (
        a.ndim != 2
        or b.ndim != 2
        or shapes
        != (
            (a.shape[0], b.shape[0]),
            (a.shape[1], b.shape[1]),
            (a.shape[0], b.shape[1]),
        )
    ):
        raise ValueError(
            "a must be [M, K], b [K, N] and the accumulator [M, N], "
            f"got {', '.join(str(list(shape)) for shape in shapes)}"
        )


def _step(
    a: NDArray[np.float16], b: NDArray[np.float16], total: NDArray[np.float32], unit: Unit
) -> NDArray[np.float32]:
    """Computes one step: at most L products [M, L] x [L, N] and the accumulator."""
    with np.errstate(invalid="ignore"):  # 0 inf, inf - inf: NaN, as the result is
        products = a.astype(np.float64)[:, :, None] * b.astype(np.float64)[None]
        plain = products.sum(axis=1) + total
        finite = np.isfinite(plain)
        largest = _largest_exponent(a, b, total, unit.zero_aligns)
        shift = np.where(finite, unit.fraction_bits - largest, 0)
        # These are integers far below 2^53 in float64, so their sum is exact.
        kept = np.trunc(np.ldexp(products, shift[:, None, :])).sum(axis=1)
        kept += np.trunc(np.ldexp(total.astype(np.float64), shift))
    return _towards_zero(np.where(finite, np.ldexp(kept, -shift), plain))


def _largest_exponent(
    a: NDArray[np.float16],
    b: NDArray[np.float16],
    accumulator: NDArray[np.float32],
    zero_aligns: bool,
) -> NDArray[np.int64]:
    """Returns the largest nominal exponent of the products and the accumulator, [M, N].

    If all of them are zero, it is the accumulator's least.
    """
    absent = _LEAST_HALF if zero_aligns else _ABSENT
    left, right = _exponents(a, _LEAST_HALF, absent), _exponents(b, _LEAST_HALF, absent)
    products = (left[:, :, None] + right[None]).max(axis=1)
    return np.maximum(products, _exponents(accumulator, _LEAST_SINGLE, _LEAST_SINGLE))


def _exponents(values: NDArray, least: int, of_zero: int) -> NDArray[np.int64]:
    """Returns nominal exponents: that of the leading bit, at least ``least``, or ``of_zero``."""
    _, exponents = np.frexp(values.astype(np.float64))  # values are in [0.5, 1) times 2^exponent
    return np.where(values == 0, of_zero, np.maximum(exponents.astype(np.int64) - 1, least))


def _towards_zero(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Rounds to float32 towards zero; values from 2^128 on become infinite."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
    too_far = (np.abs(rounded.astype(np.float64)) > np.abs(values)) & (np.abs(values) < 2.0**128)
    return np.where(too_far, np.nextafter(rounded, np.float32(0)), rounded)
