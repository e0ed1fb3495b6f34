"""Compares the matrix unit's sums with the published models, bit for bit, and with the bound."""

import math

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from benchmarks.gpu_first.device import device_of, synchronize
from benchmarks.gpu_first.step import Emit, Setting, Step
from benchmarks.matrix_unit import UNITS, Unit, magnitude, matrix_product

# docs/exactness.md allows a step of 16 products to lose this much, in units of 2^-24 of the
# magnitude.
ALLOWED = 64.0
_STEP = 16
_ROWS = {"a warp group's product": 128, "a warp's product": 16}
_COLUMNS = 64
_MODELS = UNITS | {
    f"{name}, zeros count as 2^-14": unit._replace(zero_aligns=True) for name, unit in UNITS.items()
}
Inputs = tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.float32]]


@triton.jit
def product_kernel(
    a, b, accumulator, result,
    rows: tl.constexpr, columns: tl.constexpr, products: tl.constexpr,
):  # fmt: skip
    """Compute result = a [rows, products] b [products, columns] + accumulator, in one tl.dot."""
    row, column, inner = tl.arange(0, rows), tl.arange(0, columns), tl.arange(0, products)
    place = row[:, None] * columns + column[None, :]
    left = tl.load(a + row[:, None] * products + inner[None, :])
    right = tl.load(b + inner[:, None] * columns + column[None, :])
    tl.store(result + place, tl.dot(left, right, tl.load(accumulator + place)))


def _normal(rng: np.random.Generator, rows: int, inner: int) -> Inputs:
    a, b = rng.normal(size=(rows, inner)), rng.normal(size=(inner, _COLUMNS))
    accumulator = rng.normal(size=(rows, _COLUMNS))
    return a.astype(np.float16), b.astype(np.float16), accumulator.astype(np.float32)


def _wide(rng: np.random.Generator, rows: int, inner: int) -> Inputs:
    """Draws numbers of independent sizes, from 2^-14 to 2^7."""
    a, b, accumulator = _normal(rng, rows, inner)
    a, b = ((x * 2.0 ** rng.integers(-14, 8, x.shape)).astype(np.float16) for x in (a, b))
    sizes = 2.0 ** rng.integers(-30, 16, accumulator.shape)
    return a, b, (accumulator * sizes).astype(np.float32)


def _cancelling(rng: np.random.Generator, rows: int, inner: int) -> Inputs:
    """Draws pairs of large products that cancel, and small ones."""
    a, b, _ = _normal(rng, rows, inner)
    a[:, 1::4], b[1::4] = -a[:, ::4], b[::4]
    a[:, 2::4] = (a[:, 2::4] * 2.0**-12).astype(np.float16)
    return a, b, np.zeros((rows, _COLUMNS), np.float32)


def _subnormal(rng: np.random.Generator, rows: int, inner: int) -> Inputs:
    """Draws float16's subnormal numbers for b, and large and small ones for a."""
    a, b, _ = _normal(rng, rows, inner)
    b = (rng.integers(-1023, 1024, b.shape) * 2.0**-24).astype(np.float16)
    b[::3] = (b[::3].astype(np.float64) * 2.0**-8).astype(np.float16)
    a[:, ::2] = (a[:, ::2].astype(np.float64) * 2.0**12).astype(np.float16)
    accumulator = rng.normal(size=(rows, _COLUMNS)) * 2.0**-18
    return a, b, accumulator.astype(np.float32)


def _zeros(rng: np.random.Generator, rows: int, inner: int) -> Inputs:
    """Draws zeros opposite to large numbers, so that all other products are tiny."""
    a, b, accumulator = _normal(rng, rows, inner)
    a, b = ((x * 2.0**-9).astype(np.float16) for x in (a, b))
    a[:, ::4], b[::4] = 0, np.float16(2.0**15)
    return a, b, (accumulator * 2.0**-20).astype(np.float32)


def _large_accumulator(rng: np.random.Generator, rows: int, inner: int) -> Inputs:
    a, b, accumulator = _normal(rng, rows, inner)
    return a, b, (accumulator * 2.0**12).astype(np.float32)


_DATA = {
    "normal": _normal,
    "sizes of a wide range": _wide,
    "cancelling pairs": _cancelling,
    "subnormal numbers": _subnormal,
    "zeros beside large numbers": _zeros,
    "large accumulator": _large_accumulator,
}


def steps(setting: Setting) -> list[Step]:
    """Return a step for each way to the unit, size and kind of data; then one for the verdict."""
    gpu = device_of(setting)
    differing = dict.fromkeys(_MODELS, 0)
    probed: list[str] = []
    made = []
    for way, rows in _ROWS.items():
        for inner in (16,) if setting.rehearse else (16, 64, 256):
            for kind in _DATA:

                def run(emit: Emit, way=way, rows=rows, inner=inner, kind=kind) -> None:
                    inputs = _DATA[kind](np.random.default_rng(len(probed)), rows, inner)
                    result = _on(gpu.device, *inputs)
                    synchronize(gpu)
                    differ = {name: _differing(*inputs, u, result) for name, u in _MODELS.items()}
                    for name, count in differ.items():
                        differing[name] += count
                    probed.append(kind)
                    lost = largest_loss(*inputs, result)
                    allowed = ALLOWED * inner / _STEP
                    emit(
                        sums=result.size,
                        models_that_fit=[name for name, count in differ.items() if not count],
                        fewest_differing=min(differ.values()),
                        largest_loss=lost,
                        allowed_loss=allowed,
                    )
                    if not lost <= allowed:
                        raise ArithmeticError(
                            f"the unit lost {lost:.1f} units of 2^-24, the bound allows {allowed:g}"
                        )

                made.append(Step(f"{way}, {inner} products, {kind}", 60, run))

    def verdict(emit: Emit) -> None:
        fit = [name for name, count in differing.items() if probed and not count]
        emit(steps_probed=len(probed), models_that_fit_all=fit, sums_that_differ=differing)
        if not fit and not setting.rehearse:
            raise ArithmeticError("no published model gives this unit's sums in every bit")

    return [*made, Step("verdict", 10, verdict)]


def _on(
    device: torch.device,
    a: NDArray[np.float16],
    b: NDArray[np.float16],
    accumulator: NDArray[np.float32],
) -> NDArray[np.float32]:
    tensors = [torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in (a, b, accumulator)]
    result = torch.empty_like(tensors[2])
    sizes = {"rows": len(a), "columns": b.shape[1], "products": len(b)}
    product_kernel[(1,)](*tensors, result, **sizes, num_warps=4)
    return result.cpu().numpy()


def _differing(
    a: NDArray[np.float16],
    b: NDArray[np.float16],
    accumulator: NDArray[np.float32],
    unit: Unit,
    result: NDArray[np.float32],
) -> int:
    """Counts the sums whose bits differ from the model's; 0 and -0 are equal."""
    return int((matrix_product(a, b, accumulator, unit) != result).sum())


def largest_loss(
    a: NDArray[np.float16],
    b: NDArray[np.float16],
    accumulator: NDArray[np.float32],
    result: NDArray[np.float32],
) -> float:
    """Return the largest error of a sum, in units of 2^-24 of its magnitude.

    The error is exact, because the sum of the products, the accumulator and the negative result is
    rounded once.
    """
    left, right = a.astype(np.float64), b.astype(np.float64)
    unit = magnitude(a, b, accumulator) * 2.0**-24
    lost = np.empty_like(unit)
    for i, j in np.ndindex(*unit.shape):
        terms = left[i] * right[:, j]
        lost[i, j] = abs(math.fsum([*terms, float(accumulator[i, j]), -float(result[i, j])]))
    return float((lost / unit).max())
