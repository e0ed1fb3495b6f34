"""Stages whose projections were composed: each finds the nearest code to what is left for it."""

import re

import pytest
import torch
from kernels import INSTRUCTION_SETS, compiled, same_bits
from torch import Tensor

import vqvae_fast
from vqvae_fast.backends.reference import ops as reference
from vqvae_fast.formulas import directions

pytestmark = pytest.mark.usefixtures("restore")
UNIT = 2.0**-24  # half an ulp of 1 in float32


def arguments(
    rows: int, stages: int, codes: int, dim: int, cosine: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, bool]:
    """What the op takes; each stage's codes are smaller than those of the stage before."""
    codebooks = torch.randn(stages, codes, dim) * 0.7 ** torch.arange(stages)[:, None, None]
    compared = directions(codebooks) if cosine else codebooks
    packed = vqvae_fast.pack(compared).packed
    corrections = torch.randn(stages, dim, stages * dim) / dim
    return torch.randn(rows, stages * dim), codebooks, compared, packed, corrections, cosine


def run(*given: object) -> tuple[Tensor, Tensor]:
    return torch.ops.vqvae_fast.composed_residual_code(*given)


def excess(
    seen: Tensor,
    codebooks: Tensor,
    compared: Tensor,
    corrections: Tensor,
    cosine: bool,
    found: Tensor,
) -> tuple[Tensor, Tensor]:
    """By how much codes are farther than the nearest in float64, and what rounding may add.

    The vectors of a stage are computed in float64 from the codes of the stages before it. In
    float32 each of their elements has at most two roundings for every element of these codes, of
    numbers no larger than the sum of all magnitudes. If a vector is wrong by an error, the
    difference of its distances from two codes is wrong by twice the error times the distance
    between them. The search may add 1e-6 of the distance.

    Returns:
        [N, Q] each.
    """
    stages, _, dim = codebooks.shape
    left, size = seen.double(), seen.double().abs()
    all_excess, all_allowed = [], []
    for q in range(stages):
        part = slice(q * dim, (q + 1) * dim)
        z, error = left[:, part], 2 * (q * dim + 1) * UNIT * size[:, part].norm(dim=1)
        book = compared[q].double()
        if cosine:  # the direction is rounded, too, and moves by as much as the vector's share
            length = z.norm(dim=1)
            z, error = z / length[:, None], 2 * error / length + UNIT
        distance = (z[:, None] - book).square().sum(-1)
        nearest, best = distance.min(dim=1)
        chosen = distance.gather(1, found[:, q : q + 1])[:, 0]
        apart = (book[found[:, q]] - book[best]).norm(dim=1)
        all_excess.append(chosen - nearest)
        all_allowed.append(2 * error * apart + 1e-6 * nearest)
        code, correction = codebooks[q][found[:, q]].double(), corrections[q].double()
        left = left - code @ correction
        size = size + code.abs() @ correction.abs()
    return torch.stack(all_excess, dim=1), torch.stack(all_allowed, dim=1)


def check(given: tuple, result: tuple[Tensor, Tensor]) -> None:
    seen, codebooks, compared, _, corrections, cosine = given
    indices, chosen = result
    stages, _, dim = codebooks.shape
    assert (indices.shape, indices.dtype) == ((*seen.shape[:-1], stages), torch.int64)
    assert chosen.shape == seen.shape
    seen, found = seen.reshape(-1, stages * dim), indices.reshape(-1, stages)
    taken = codebooks[torch.arange(stages), found]
    assert torch.equal(chosen.reshape(taken.shape), taken)
    farther, allowed = excess(seen, codebooks, compared, corrections, cosine, found)
    assert (farther <= allowed).all()


SIZES = [(1, 9, 1024, 8), (13, 9, 1024, 8), (257, 4, 300, 8), (0, 3, 7, 5), (29, 1, 515, 3)]
SIZES += [(70, 5, 7, 1), (33, 3, 130, 40)]


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_codes_are_the_nearest(size: tuple, cosine: bool) -> None:
    given = arguments(*size, cosine)
    check(given, run(*given))
    check(given, reference.composed_residual_code(*given))


def test_the_judge_allows_no_other_code() -> None:
    given = arguments(100, 4, 300, 8, False)
    seen, codebooks, compared, _, corrections, cosine = given
    indices, _ = run(*given)
    for stage in range(4):
        wrong = indices.clone()
        wrong[:, stage] = (wrong[:, stage] + 1) % 300
        farther, allowed = excess(seen, codebooks, compared, corrections, cosine, wrong)
        assert (farther > allowed)[:, stage].all()


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_instruction_set_gives_the_same_bits(size: tuple, cosine: bool) -> None:
    seen, codebooks, compared, _, corrections, _ = arguments(*size, cosine)
    wanted = None
    for isa in reversed(INSTRUCTION_SETS):
        compiled(isa)
        packed = vqvae_fast.pack(compared).packed
        found = run(seen, codebooks, compared, packed, corrections, cosine)
        wanted = wanted or found
        assert all(same_bits(*pair) for pair in zip(found, wanted, strict=True)), isa


def test_neither_threads_nor_company_leave_a_trace() -> None:
    given = arguments(300, 3, 200, 8, True)
    wanted = run(*given)
    torch.set_num_threads(1)
    assert all(same_bits(*pair) for pair in zip(run(*given), wanted, strict=True))
    for n in (0, 150, 299):
        alone = run(given[0][n], *given[1:])
        assert all(same_bits(mine, all_[n]) for mine, all_ in zip(alone, wanted, strict=True))


@pytest.mark.parametrize("cosine", [False, True])
def test_shapes_and_strides(cosine: bool) -> None:
    seen, codebooks, compared, packed, corrections, _ = arguments(24, 3, 50, 4, cosine)
    wanted = run(seen, codebooks, compared, packed, corrections, cosine)
    for rows in (seen.view(2, 12, 12), seen.t().contiguous().t(), seen.repeat(1, 2)[:, :12]):
        strided = codebooks.transpose(1, 2).contiguous().transpose(1, 2)
        more = corrections.repeat(1, 1, 2)[..., :12]
        found = run(rows, strided, compared, packed, more, cosine)
        for mine, theirs in zip(found, wanted, strict=True):
            assert same_bits(mine.reshape(theirs.shape), theirs)


def test_only_later_stages_are_corrected() -> None:
    given = list(arguments(20, 3, 50, 4, True))
    wanted = run(*given)
    stage_of_column = torch.arange(12) // 4
    given[4] = torch.where(stage_of_column > torch.arange(3)[:, None, None], given[4], torch.nan)
    for found in (run(*given), reference.composed_residual_code(*given)):
        assert torch.equal(found[0], wanted[0])


def test_ties_have_the_lowest_index() -> None:
    """Whole numbers are exact, so that the copies of a code tie in every stage."""
    codebooks = torch.randint(-3, 4, (3, 9, 2)).float().repeat(1, 40, 1)
    corrections = torch.randint(-2, 3, (3, 2, 6)).float()
    seen = torch.randint(-9, 10, (50, 6)).float()
    packed = vqvae_fast.pack(codebooks).packed
    indices, _ = run(seen, codebooks, codebooks, packed, corrections, False)
    assert indices.max() < 9
    assert torch.equal(
        indices,
        reference.composed_residual_code(seen, codebooks, codebooks, packed, corrections, False)[0],
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0])
def test_rows_without_a_direction(value: float) -> None:
    given = arguments(20, 3, 50, 4, True)
    given[0][3, :4] = value  # what the first stage sees
    for indices, _ in (run(*given), reference.composed_residual_code(*given)):
        assert indices[3, 0] == 0
    given[0][5] = torch.nan
    for indices, _ in (run(*given), reference.composed_residual_code(*given)):
        assert indices[5].tolist() == [0, 0, 0]


@pytest.mark.parametrize("exponent", [-100, 100])
def test_squares_of_a_direction_neither_overflow_nor_vanish(exponent: int) -> None:
    given = arguments(20, 1, 50, 4, True)
    scaled = torch.ldexp(given[0], torch.tensor(exponent))
    assert torch.equal(run(scaled, *given[1:])[0], run(*given)[0])


def test_opcheck() -> None:
    for rows, cosine in ((13, True), (0, False)):
        given = arguments(rows, 3, 300, 8, cosine)
        op = torch.ops.vqvae_fast.composed_residual_code.default
        assert set(torch.library.opcheck(op, given).values()) == {"SUCCESS"}


SHAPES = "seen must be [..., Q * D], codebooks and compared [Q, K, D] and corrections [Q, D, Q * D]"


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, torch.zeros(5, 11), f"{SHAPES}, got [5, 11], [3, 50, 4]"),
        (0, torch.zeros(()), f"{SHAPES}, got []"),
        (1, torch.zeros(50, 4), f"{SHAPES}, got [5, 12], [50, 4]"),
        (1, torch.zeros(3, 0, 4), SHAPES),
        (2, torch.zeros(3, 49, 4), SHAPES),
        (4, torch.zeros(3, 4, 11), SHAPES),
        (4, torch.zeros(3, 12), SHAPES),
    ],
)
def test_shapes_that_do_not_fit(place: int, wrong: Tensor, message: str) -> None:
    given = list(arguments(5, 3, 50, 4, False))
    given[place] = wrong
    for op in (run, reference.composed_residual_code):
        with pytest.raises(ValueError, match=re.escape(message)):
            op(*given)


@pytest.mark.skipif(not INSTRUCTION_SETS, reason="the C++ extension is not there")
def test_what_the_kernel_refuses() -> None:
    given = list(arguments(5, 3, 50, 4, False))
    with pytest.raises(TypeError, match="all must be float32, got Double"):
        run(given[0].double(), *given[1:])
    with pytest.raises(ValueError, match="packed must be contiguous bytes"):
        run(*given[:3], given[3][:2], *given[4:])
    other = vqvae_fast.pack(torch.randn(3, 51, 4)).packed
    with pytest.raises(ValueError, match="does not belong to this codebook"):
        run(*given[:3], other, *given[4:])
