"""The product of vectors and a matrix, in the tiles of the search."""

import re

import pytest
import torch
from kernels import INSTRUCTION_SETS, REFUSED, compiled, same_bits
from torch import Tensor

import vqvae_fast  # noqa: F401  (defines the ops)
from vqvae_fast.backends.reference import ops as reference

pytestmark = pytest.mark.usefixtures("restore")
needs_kernels = pytest.mark.skipif(not INSTRUCTION_SETS, reason="the C++ extension is not there")
UNIT = 2.0**-24  # half an ulp of 1 in float32


def run(vectors: Tensor, matrix: Tensor, bias: Tensor, columns: int) -> Tensor:
    return torch.ops.vqvae_fast.project(vectors, matrix, bias, columns)


def operands(channels: int, columns: int) -> tuple[Tensor, Tensor, int]:
    """A map of so many columns; what lies behind them must have no effect."""
    behind = -columns % 16
    matrix = torch.nn.functional.pad(torch.randn(channels, columns), (0, behind), value=torch.nan)
    bias = torch.nn.functional.pad(torch.randn(columns), (0, behind), value=torch.nan)
    return matrix, bias, columns


def check(vectors: Tensor, matrix: Tensor, bias: Tensor, columns: int, found: Tensor) -> None:
    """Each term is rounded at most twice, as a product and in the sum, by their magnitudes."""
    wide, exact_bias = matrix[:, :columns].double(), bias[:columns].double()
    exact = vectors.double() @ wide + exact_bias
    magnitudes = vectors.double().abs() @ wide.abs() + exact_bias.abs()
    assert found.dtype == torch.float32
    assert found.shape == exact.shape
    assert ((found.double() - exact).abs() <= (2 * vectors.shape[-1] + 1) * UNIT * magnitudes).all()


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 50, 131])
@pytest.mark.parametrize(("channels", "columns"), [(1, 1), (40, 6), (33, 48), (24, 67), (512, 512)])
def test_products(rows: int, channels: int, columns: int) -> None:
    torch.manual_seed(rows + channels)
    given = operands(channels, columns)
    vectors = torch.randn(rows, channels)
    check(vectors, *given, reference.project(vectors, *given))
    check(vectors, *given, run(vectors, *given))
    for isa in INSTRUCTION_SETS:
        compiled(isa)
        check(vectors, *given, run(vectors, *given))


@needs_kernels
@pytest.mark.parametrize("threads", [1, 3])
def test_layouts_and_threads_give_the_same_bits(threads: int) -> None:
    given = operands(40, 67)
    vectors = torch.randn(3, 290, 40)  # enough work for two threads
    wanted = run(vectors, *given)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        channels_first = vectors.transpose(1, 2).contiguous().transpose(1, 2)
        apart = torch.randn(3, 290, 2, 80)[:, :, 0, ::2].copy_(vectors)
        swapped = vectors.transpose(0, 1).contiguous().transpose(0, 1)
        for same in (vectors, channels_first, apart, swapped):
            assert same_bits(run(same, *given), wanted)
    finally:
        torch.set_num_threads(before)


@needs_kernels
def test_a_row_has_the_same_bits_among_any_others() -> None:
    given = operands(40, 67)
    vectors = torch.randn(29, 40)
    together = run(vectors, *given)
    assert all(
        same_bits(run(one[None], *given)[0], row)
        for one, row in zip(vectors, together, strict=True)
    )


def test_values_that_are_not_finite_stay_in_their_rows() -> None:
    given = operands(40, 67)
    vectors = torch.randn(19, 40)
    vectors[3, 5], vectors[18, 0] = torch.nan, torch.inf
    found = run(vectors, *given)
    assert found[3].isnan().all()
    assert not found[18].isfinite().any()
    rest = [n for n in range(19) if n not in (3, 18)]
    check(vectors[rest], *given, found[rest])


def test_opcheck() -> None:
    for rows in (0, 13):
        given = (torch.randn(2, rows, 40), *operands(40, 67))
        op = torch.ops.vqvae_fast.project.default
        assert set(torch.library.opcheck(op, given).values()) == {"SUCCESS"}


MESSAGE = (
    "vectors must be [..., C], matrix [C, columns up to a multiple of 16] and bias of as many, "
    "both contiguous, for columns="
)


@pytest.mark.parametrize(
    ("wrong", "columns"),
    [
        ({"vectors": torch.zeros(5, 41)}, 6),
        ({"vectors": torch.zeros(())}, 6),
        ({"vectors": torch.zeros(5, 0), "matrix": torch.zeros(0, 16)}, 6),
        ({"matrix": torch.zeros(40, 6)}, 6),
        ({"matrix": torch.zeros(40, 32)}, 6),
        ({"bias": torch.zeros(6)}, 6),
        ({}, 0),
        ({}, 17),
        ({}, -3),
    ],
)
def test_shapes_that_do_not_fit(wrong: dict[str, Tensor], columns: int) -> None:
    given = {"vectors": torch.zeros(5, 40), "matrix": torch.zeros(40, 16), "bias": torch.zeros(16)}
    for op in (run, reference.project):
        with pytest.raises(REFUSED, match=re.escape(MESSAGE + str(columns))):
            op(**given | wrong, columns=columns)


@needs_kernels
def test_what_the_kernel_refuses() -> None:
    matrix, bias, columns = operands(40, 6)
    with pytest.raises(REFUSED, match="all must be float32, got Double"):
        run(torch.zeros(5, 40).double(), matrix, bias, columns)
    with pytest.raises(REFUSED, match="both contiguous"):
        run(torch.zeros(5, 40), matrix.t().contiguous().t(), bias, columns)
