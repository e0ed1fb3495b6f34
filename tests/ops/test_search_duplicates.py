"""Codebooks of copies: the lowest index of each is chosen, and copies cost little time."""

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from kernels import INSTRUCTION_SETS, Implementation
from oracle import check, first_of_duplicates
from torch import Tensor

import vqvae_fast
from vqvae_fast import _native


def some(codebook: Tensor, share: float, value: Tensor | float) -> Tensor:
    """The codebook with about this share of its codes overwritten."""
    codebook = codebook.clone()
    codebook[torch.rand(len(codebook)) < share] = value
    return codebook


# Each entry makes a book with copies from a codebook [K, D] of different codes.
BOOKS: dict[str, Callable[[Tensor], Tensor]] = {
    "all equal": lambda e: e[:1].repeat(len(e), 1),
    "all zero": lambda e: torch.zeros_like(e),
    "zeros of either sign": lambda e: torch.where(e > 0, 0.0, -0.0).to(e.dtype),
    "nine in ten are zero": lambda e: some(e, 0.9, 0.0),
    "nine in ten equal one": lambda e: some(e, 0.9, e[7]),
    "half are zero": lambda e: some(e, 0.5, 0.0),
    "a fifth are zero": lambda e: some(e, 0.2, 0.0),
    "each 16 times": lambda e: e[torch.arange(len(e)) % (len(e) // 16)],
    "16 neighbours are equal": lambda e: e[torch.arange(len(e)) // 16],
    "both signs of two": lambda e: torch.cat([e[:2], -e[:2]])[torch.arange(len(e)) % 4],
    "NaN and infinity first": lambda e: torch.cat(
        [torch.full_like(e[:1], torch.nan), torch.full_like(e[:1], torch.inf), some(e, 0.9, 0)[2:]]
    ),
}
SHAPES = [(1, 300, 8), (5, 1024, 17), (20, 2048, 32), (600, 400, 33), (1500, 1024, 8)]


@pytest.mark.quick(100)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("book", BOOKS)
def test_the_first_of_equal_codes_is_chosen(
    implementation: Implementation, dtype: torch.dtype, book: str, shape: tuple[int, int, int]
) -> None:
    rows, codes, dim = shape
    z = torch.randn(rows, dim).to(dtype)
    codebook = BOOKS[book](torch.randn(codes, dim).to(dtype))
    quantized, indices, distances = implementation.quantize(z, codebook)
    check((indices, distances), z, codebook)
    assert torch.equal(first_of_duplicates(codebook)[indices], indices)
    assert torch.equal(quantized, codebook[indices])


@pytest.mark.quick(66)
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("book", BOOKS)
def test_instruction_sets_and_thread_counts_agree(
    search_everywhere: Callable, dtype: torch.dtype, book: str, threads: int
) -> None:
    """Rows that are not finite go along; codes lie in a feature map's layout."""
    z = torch.randn(500, 24).to(dtype)
    z[3, 5], z[400, 0], z[77] = torch.nan, torch.inf, 0
    codebook = BOOKS[book](torch.randn(1024, 24).to(dtype)).T.contiguous().T
    torch.set_num_threads(1)
    (_, wanted), *_ = search_everywhere(z, codebook)
    torch.set_num_threads(threads)
    for isa, (indices, distances) in search_everywhere(z, codebook):
        assert torch.equal(indices, wanted.indices), isa
        assert torch.equal(distances.nan_to_num(-1.0), wanted.distances.nan_to_num(-1.0)), isa


@pytest.mark.parametrize("book", ["all equal", "all zero", "nine in ten are zero", "half are zero"])
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_copies_cost_little(restore: None, isa: str, book: str) -> None:
    """Measured in float64, each for each row, copies once took 6 to 30 times as long here."""
    _native.extension.set_cpu_isa(isa)
    torch.set_num_threads(1)
    z, different = torch.randn(1024, 32), torch.randn(2048, 32)
    copies = BOOKS[book](different)
    ratios = []
    for _ in range(9):
        times = []
        for codebook in (different, copies):
            start = time.perf_counter()
            vqvae_fast.nearest_code(z, codebook)
            times.append(time.perf_counter() - start)
        ratios.append(times[1] / times[0])
    assert statistics.median(ratios) < 6
