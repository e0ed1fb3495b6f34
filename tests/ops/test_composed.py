"""Stages whose projections were composed: each finds the nearest code to what is left for it."""

import re
from typing import NamedTuple

import pytest
import torch
from kernels import INSTRUCTION_SETS, REFUSED, compiled, same_bits
from torch import Tensor

import vqvae_fast
from vqvae_fast.backends.reference import ops as reference
from vqvae_fast.formulas import directions

pytestmark = pytest.mark.usefixtures("restore")
# torch's products, which the reference takes, round otherwise for another number of rows.
needs_kernels = pytest.mark.skipif(not INSTRUCTION_SETS, reason="the C++ extension is not there")
UNIT = 2.0**-24  # half an ulp of 1 in float32


class Given(NamedTuple):
    """What the op takes."""

    vectors: Tensor
    entry: Tensor
    entry_bias: Tensor
    codebooks: Tensor
    compared: Tensor
    packed: Tensor
    corrections: Tensor
    exit: Tensor
    exit_bias: Tensor
    cosine: bool


def filled(matrix: Tensor) -> Tensor:
    """The columns up to a multiple of 16; what lies there must have no effect."""
    return torch.nn.functional.pad(matrix, (0, -matrix.shape[-1] % 16), value=torch.nan)


def arguments(
    rows: int, stages: int, codes: int, dim: int, cosine: bool, channels: int | None = None
) -> Given:
    """Each stage's codes are smaller than those of the stage before.

    Without channels the stages see the vectors themselves, and the codes are returned side by side.
    """
    codebooks = torch.randn(stages, codes, dim) * 0.7 ** torch.arange(stages)[:, None, None]
    compared = directions(codebooks) if cosine else codebooks
    width = stages * dim
    if channels is None:
        channels, entry, entry_bias = width, torch.eye(width), torch.zeros(width)
        exit_map, exit_bias = torch.eye(width), torch.zeros(width)
    else:
        entry, entry_bias = torch.randn(channels, width) / channels**0.5, torch.randn(width)
        exit_map, exit_bias = torch.randn(width, channels) / width**0.5, torch.randn(channels)
    return Given(
        vectors=torch.randn(rows, channels),
        entry=filled(entry),
        entry_bias=filled(entry_bias),
        codebooks=codebooks,
        compared=compared,
        packed=vqvae_fast.pack(compared).packed,
        corrections=torch.randn(stages, dim, width) / dim,
        exit=filled(exit_map),
        exit_bias=filled(exit_bias),
        cosine=cosine,
    )


def run(*given: object) -> tuple[Tensor, Tensor]:
    return torch.ops.vqvae_fast.composed_residual_code(*given)


def excess(given: Given, found: Tensor) -> tuple[Tensor, Tensor]:
    """By how much codes are farther than the nearest in float64, and what rounding may add.

    The vectors of a stage are computed in float64 from the codes of the stages before it. In
    float32 each of their elements has a rounding for every channel, and at most two for every
    element of these codes, of numbers no larger than the sum of all magnitudes. If a vector is
    wrong by an error, the difference of its distances from two codes is wrong by twice the error
    times the distance between them. The search may add 1e-6 of the distance.

    Returns:
        [N, Q] each.
    """
    codebooks, (stages, _, dim) = given.codebooks, given.codebooks.shape
    entry, bias = (part[..., : stages * dim].double() for part in (given.entry, given.entry_bias))
    vectors = given.vectors.reshape(-1, len(entry)).double()
    left, size = vectors @ entry + bias, vectors.abs() @ entry.abs() + bias.abs()
    roundings = 0 if torch.equal(entry, torch.eye(len(entry)).double()) else len(entry) + 1
    all_excess, all_allowed = [], []
    for q in range(stages):
        part = slice(q * dim, (q + 1) * dim)
        z = left[:, part]
        error = (roundings + 2 * (q * dim + 1)) * UNIT * size[:, part].norm(dim=1)
        book = given.compared[q].double()
        if (
            given.cosine
        ):  # the direction is rounded, too, and moves by as much as the vector's share
            length = z.norm(dim=1)
            z, error = z / length[:, None], 2 * error / length + UNIT
        distance = (z[:, None] - book).square().sum(-1)
        nearest, best = distance.min(dim=1)
        chosen = distance.gather(1, found[:, q : q + 1])[:, 0]
        apart = (book[found[:, q]] - book[best]).norm(dim=1)
        all_excess.append(chosen - nearest)
        all_allowed.append(2 * error * apart + 1e-6 * nearest)
        code, correction = codebooks[q][found[:, q]].double(), given.corrections[q].double()
        left = left - code @ correction
        size = size + code.abs() @ correction.abs()
    return torch.stack(all_excess, dim=1), torch.stack(all_allowed, dim=1)


def check(given: Given, result: tuple[Tensor, Tensor]) -> None:
    indices, quantized = result
    stages, channels = len(given.codebooks), given.vectors.shape[-1]
    assert (indices.shape, indices.dtype) == ((*given.vectors.shape[:-1], stages), torch.int64)
    found = indices.reshape(-1, stages)
    farther, allowed = excess(given, found)
    assert (farther <= allowed).all()
    chosen = given.codebooks[torch.arange(stages), found].flatten(1).double()
    exit_map, bias = given.exit[:, :channels].double(), given.exit_bias[:channels].double()
    assert quantized.shape == given.vectors.shape
    difference = quantized.reshape(-1, channels) - (chosen @ exit_map + bias)
    size = chosen.abs() @ exit_map.abs() + bias.abs()
    assert (difference.abs() <= (len(exit_map) + 2) * UNIT * size).all()


SIZES = [(1, 9, 1024, 8), (13, 9, 1024, 8), (257, 4, 300, 8), (0, 3, 7, 5), (29, 1, 515, 3)]
SIZES += [(70, 5, 7, 1), (33, 3, 130, 40)]


@pytest.mark.parametrize("channels", [None, 1, 40, 130])
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_codes_are_the_nearest(size: tuple, cosine: bool, channels: int | None) -> None:
    given = arguments(*size, cosine, channels)
    check(given, run(*given))
    check(given, reference.composed_residual_code(*given))


def test_the_judge_allows_no_other_code() -> None:
    given = arguments(100, 4, 300, 8, False, 40)
    indices, _ = run(*given)
    for stage in range(4):
        wrong = indices.clone()
        wrong[:, stage] = (wrong[:, stage] + 1) % 300
        farther, allowed = excess(given, wrong)
        assert (farther > allowed)[:, stage].all()


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_instruction_set(size: tuple, cosine: bool) -> None:
    """Products may round otherwise in each; behind exact products all have the same bits."""
    given, exact = arguments(*size, cosine, 40), arguments(*size, cosine)
    wanted = None
    for isa in reversed(INSTRUCTION_SETS):
        compiled(isa)
        check(given, run(*given._replace(packed=vqvae_fast.pack(given.compared).packed)))
        found = run(*exact._replace(packed=vqvae_fast.pack(exact.compared).packed))
        wanted = wanted or found
        assert all(same_bits(*pair) for pair in zip(found, wanted, strict=True)), isa


@needs_kernels
def test_neither_threads_nor_company_leave_a_trace() -> None:
    given = arguments(300, 3, 200, 8, True, 40)
    wanted = run(*given)
    torch.set_num_threads(1)
    assert all(same_bits(*pair) for pair in zip(run(*given), wanted, strict=True))
    for n in (0, 150, 299):
        alone = run(given.vectors[n], *given[1:])
        assert all(same_bits(mine, all_[n]) for mine, all_ in zip(alone, wanted, strict=True))


@needs_kernels
@pytest.mark.parametrize("cosine", [False, True])
def test_shapes_and_strides(cosine: bool) -> None:
    given = arguments(48, 3, 50, 4, cosine, 20)
    wanted, vectors = run(*given), given.vectors
    books = given.codebooks.transpose(1, 2).contiguous().transpose(1, 2)
    for rows in (
        vectors.view(2, 24, 20),
        vectors.t().contiguous().t(),
        vectors.view(4, 12, 20).transpose(1, 2).contiguous().transpose(1, 2),
        vectors.view(16, 3, 20).transpose(1, 2).contiguous().transpose(1, 2),
        vectors.view(2, 2, 12, 20).movedim(-1, 1).contiguous().movedim(1, -1),
        vectors.repeat(1, 2)[:, :20],
    ):
        found = run(*given._replace(vectors=rows, codebooks=books))
        for mine, theirs in zip(found, wanted, strict=True):
            assert mine.shape[:-1] == rows.shape[:-1]
            assert same_bits(mine.reshape(theirs.shape), theirs)


def test_only_later_stages_are_corrected() -> None:
    given = arguments(20, 3, 50, 4, True)
    wanted = run(*given)
    is_later = torch.arange(12) // 4 > torch.arange(3)[:, None, None]
    other = given._replace(corrections=torch.where(is_later, given.corrections, torch.nan))
    for found in (run(*other), reference.composed_residual_code(*other)):
        assert torch.equal(found[0], wanted[0])


def test_ties_have_the_lowest_index() -> None:
    """Whole numbers are exact, so that the copies of a code tie in every stage."""
    codebooks = torch.randint(-3, 4, (3, 9, 2)).float().repeat(1, 40, 1)
    given = arguments(50, 3, 360, 2, False)._replace(
        vectors=torch.randint(-9, 10, (50, 6)).float(),
        codebooks=codebooks,
        compared=codebooks,
        packed=vqvae_fast.pack(codebooks).packed,
        corrections=torch.randint(-2, 3, (3, 2, 6)).float(),
    )
    indices, _ = run(*given)
    assert indices.max() < 9
    assert torch.equal(indices, reference.composed_residual_code(*given)[0])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_rows_that_are_not_finite(value: float) -> None:
    given = arguments(20, 3, 50, 4, True, 40)
    wanted, _ = run(*given)
    given.vectors[5, 7] = value
    others = torch.arange(20) != 5
    for indices, _ in (run(*given), reference.composed_residual_code(*given)):
        assert indices[5].tolist() == [0, 0, 0]
        assert torch.equal(indices[others], wanted[others])


def test_a_row_without_a_direction() -> None:
    given = arguments(20, 3, 50, 4, True)
    given.vectors[3, :4] = 0  # what the first stage sees
    for indices, _ in (run(*given), reference.composed_residual_code(*given)):
        assert indices[3, 0] == 0


@pytest.mark.parametrize("exponent", [-100, 100])
def test_squares_of_a_direction_neither_overflow_nor_vanish(exponent: int) -> None:
    given = arguments(20, 1, 50, 4, True)
    scaled = torch.ldexp(given.vectors, torch.tensor(exponent))
    assert torch.equal(run(scaled, *given[1:])[0], run(*given)[0])


def test_opcheck() -> None:
    for rows, cosine in ((13, True), (0, False)):
        given = arguments(rows, 3, 300, 8, cosine)
        op = torch.ops.vqvae_fast.composed_residual_code.default
        assert set(torch.library.opcheck(op, given).values()) == {"SUCCESS"}


SHAPES = (
    "vectors must be [..., C], codebooks and compared [Q, K, D], corrections [Q, D, Q * D], and "
    "with columns up to a multiple of 16 entry [C, Q * D] and exit [Q * D, C] and their biases, "
    "got "
)


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        ({"vectors": torch.zeros(5, 11)}, "[5, 11], [3, 50, 4]"),
        ({"vectors": torch.zeros(())}, "[]"),
        ({"vectors": torch.zeros(5, 0)}, "[5, 0]"),
        ({"codebooks": torch.zeros(50, 4)}, "[5, 20], [50, 4]"),
        ({"codebooks": torch.zeros(3, 0, 4), "compared": torch.zeros(3, 0, 4)}, ""),
        ({"compared": torch.zeros(3, 49, 4)}, ""),
        ({"corrections": torch.zeros(3, 4, 11)}, ""),
        ({"corrections": torch.zeros(3, 12)}, ""),
        ({"entry": torch.zeros(20, 12)}, ""),
        ({"entry": torch.zeros(19, 16)}, ""),
        ({"entry_bias": torch.zeros(12)}, ""),
        ({"exit": torch.zeros(12, 20)}, ""),
        ({"exit": torch.zeros(16, 32)}, ""),
        ({"exit_bias": torch.zeros(1, 32)}, ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_shapes_that_do_not_fit(wrong: dict, got: str) -> None:
    given = arguments(5, 3, 50, 4, False, 20)._replace(**wrong)
    for op in (run, reference.composed_residual_code):
        with pytest.raises(REFUSED, match=re.escape(SHAPES + got)):
            op(*given)


@needs_kernels
def test_what_the_kernel_refuses() -> None:
    given = arguments(5, 3, 50, 4, False, 20)
    with pytest.raises(REFUSED, match="all must be float32, got Double"):
        run(given.vectors.double(), *given[1:])
    with pytest.raises(REFUSED, match="packed must be contiguous bytes"):
        run(*given._replace(packed=given.packed[:2]))
    with pytest.raises(REFUSED, match="does not belong to this codebook"):
        run(*given._replace(packed=vqvae_fast.pack(torch.randn(3, 51, 4)).packed))
    with pytest.raises(REFUSED, match="must be contiguous"):
        run(*given._replace(entry=given.entry.t().contiguous().t()))
