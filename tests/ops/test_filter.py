"""The integer filter of the CPU: named values that break searches, at a size that it serves."""

import math

import pytest
import torch
from adversarial import CASES, FILTERED, HALF, Size
from kernels import (
    EVERY_SET,
    FILTERING,
    INSTRUCTION_SETS,
    compiled,
    filtering_sets,
    settled_by_filter,
)
from oracle import check
from torch import Tensor

import vqvae_fast
from vqvae_fast import _native

pytestmark = [
    pytest.mark.skipif(not INSTRUCTION_SETS, reason="the C++ extension is not there"),
    pytest.mark.usefixtures("restore"),
]
sizes = pytest.mark.parametrize("size", FILTERED, ids=str)


def settled(isa: str, z: Tensor, codebook: Tensor) -> int | None:
    """How many rows the instruction set's filter settles; None where it does not serve."""
    compiled(isa)
    return settled_by_filter(z, codebook)


def check_everywhere(z: Tensor, codebook: Tensor, *, exact_ties: bool = False) -> None:
    """The oracle judges one result, which every instruction set must return."""
    check(EVERY_SET.nearest_code(z, codebook), z, codebook, exact_ties=exact_ties)


def test_the_machine_s_vector_integers_have_a_filter():
    assert filtering_sets() == [isa for isa in INSTRUCTION_SETS if isa in FILTERING]


def is_ordinary(codebook: Tensor) -> bool:
    """Whether the codes differ from their mean by numbers of which the filter makes integers."""
    spread = (codebook.double() - codebook.double().mean(dim=0)).abs().max()
    return 1e-9 < spread < 1e17


@sizes
@pytest.mark.parametrize(
    ("dtype", "case"),
    [(dtype, case) for dtype in (torch.float32, torch.bfloat16) for case in CASES]
    + [(torch.float16, case) for case in HALF],
    ids=str,
)
def test_named_values(size: Size, dtype: torch.dtype, case: str) -> None:
    cases = HALF if dtype == torch.float16 else CASES
    z, codebook = (part.to(dtype) for part in cases[case](size))
    check_everywhere(z, codebook)
    if is_ordinary(codebook):
        for isa in filtering_sets():
            assert settled(isa, z, codebook) is not None, "the filter had no part in this case"


def test_most_named_values_are_the_filter_s() -> None:
    """So what the test before asks of them is asked of the filter."""
    books = [case(size)[1].float() for size in FILTERED for case in CASES.values()]
    assert sum(map(is_ordinary, books)) > 0.6 * len(books)


@sizes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_ordinary_rows_are_settled(size: Size, dtype: torch.dtype) -> None:
    z, codebook = size.z().to(dtype), size.book().to(dtype)
    check_everywhere(z, codebook)
    for isa in filtering_sets():
        assert (settled(isa, z, codebook) or 0) > size.rows // 2


@sizes
@pytest.mark.parametrize("offset", [0, 1000])
def test_integers_tie_in_masses(size: Size, offset: int) -> None:
    z = torch.randint(-2, 3, (size.rows, size.dim)).float() + offset
    codebook = torch.randint(-2, 3, (size.codes, size.dim)).float() + offset
    z[::2, 3:], codebook[:, 3:] = offset, offset  # three dimensions: many codes are copies
    check_everywhere(z, codebook, exact_ties=True)


@sizes
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_rows_and_bad_codes(size: Size, bad: float) -> None:
    z, codebook = size.z().float(), size.book().float()
    of_rows = torch.arange(0, size.rows, 7)
    z[of_rows, torch.randint(size.dim, of_rows.shape)] = bad
    of_codes = torch.rand(size.codes) < 0.5
    codebook[of_codes, torch.randint(size.dim, (int(of_codes.sum()),))] = bad
    indices, distances = EVERY_SET.nearest_code(z, codebook)
    good = z.isfinite().all(dim=1)
    check((indices[good], distances[good]), z[good], codebook)
    first = 0 if math.isnan(bad) else int((~of_codes).nonzero()[0])
    assert (indices[~good] == first).all()
    assert not distances[~good].isfinite().any()
    for isa in filtering_sets():
        assert settled(isa, z, codebook) is not None


def test_what_the_filter_leaves_to_float32() -> None:
    """Few rows, few codes, few elements and few dimensions, each one short of what it wants."""
    dot, pairs = {"avxvnni", "avx512vnni"}, {"avx2", "avx512"}  # pairs: no product adds four bytes
    every = dot | pairs
    sizes = [
        *[((12, 2053, 17), set()), ((13, 2053, 24), set()), ((61, 255, 160), set())],
        *[((61, 1023, 15), set()), ((61, 4000, 7), set())],
        *[((61, 1023, 17), dot), ((61, 4000, 15), dot), ((61, 1023, 32), dot)],
        *[((13, 2053, 17), every), ((14, 2053, 24), every), ((61, 256, 160), every)],
        *[((61, 1024, 32), every)],
    ]
    for (rows, codes, dim), served in sizes:
        z, codebook = torch.randn(rows, dim), torch.randn(codes, dim)
        check_everywhere(z, codebook)
        serving = {isa for isa in INSTRUCTION_SETS if settled(isa, z, codebook) is not None}
        assert serving == served & set(INSTRUCTION_SETS), (rows, codes, dim)
    z, codebook = torch.randn(61, 17).double(), torch.randn(2053, 17).double()
    assert not [isa for isa in INSTRUCTION_SETS if settled(isa, z, codebook) is not None]


@pytest.mark.parametrize("isa", FILTERING)
def test_a_set_without_its_filter_searches_in_float32(isa: str) -> None:
    if isa not in INSTRUCTION_SETS:
        pytest.skip(f"this machine lacks {isa}")
    z, codebook = torch.randn(61, 64), torch.randn(1031, 64)
    wanted = compiled(isa).nearest_code(z, codebook)
    packed = vqvae_fast.pack(codebook)
    alone = f"{isa}-float32"
    assert settled(alone, z, codebook) is None
    assert _native.extension.cpu_isa() == alone
    for book in (codebook, packed):  # it does not read what was packed for integers
        found = vqvae_fast.nearest_code(z, book)
        assert torch.equal(found.indices, wanted[0])
        assert torch.equal(found.distances, wanted[1])
