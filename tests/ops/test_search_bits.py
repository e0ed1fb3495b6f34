"""The same inputs give the same bits: in every instruction set, on any number of threads."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from oracle import check, nearest

import vqvae_fast

# derandomize: a test run is repeatable; the attack with new seeds is made by hand.
SETTINGS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def searches(draw):
    """A pair z [N, D], codebook [K, D] in any dtype, of any scale, offset and grain."""
    dtype = draw(
        st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.half])
    )
    rows = draw(st.integers(1, 150))
    codes = draw(st.one_of(st.integers(1, 200), st.integers(8190, 8300)))
    dim = draw(st.integers(1, 70))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    both = torch.randn(rows + codes, dim, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):  # a coarse grain: exact ties
        both = (both * draw(st.sampled_from([1, 2, 8]))).round()
    both = both + draw(st.sampled_from([0.0, 0.0, 1.0, 1000.0, -1e5]))
    wide = dtype in (torch.float32, torch.float64)
    both = both * 2.0 ** (draw(st.integers(-140, 100)) if wide else 0)
    z, codebook = both[:rows].to(dtype), both[rows:].to(dtype)
    if draw(st.booleans()):
        z = codebook[torch.randint(codes, (rows,), generator=generator)]
    for tensor in (z, codebook):
        for _ in range(draw(st.integers(0, 3))):
            place = draw(st.integers(0, len(tensor) - 1)), draw(st.integers(0, dim - 1))
            tensor[place] = draw(st.sampled_from([float("nan"), float("inf"), 1e30, 1e4, 0.0]))
    return z, codebook


def same(a, b):
    """Equal bits; NaNs are equal, whatever their sign."""
    return torch.equal(a.indices, b.indices) and torch.equal(
        a.distances.nan_to_num(nan=-1.0, posinf=torch.inf),
        b.distances.nan_to_num(nan=-1.0, posinf=torch.inf),
    )


@SETTINGS
@given(pair=searches())
def test_instruction_sets_agree(search_everywhere, pair):
    (_, first), *others = search_everywhere(*pair)
    for isa, result in others:
        assert same(first, result), isa
    z, codebook = pair
    finite = z.isfinite().all(dim=1)
    if codebook.isfinite().all(dim=1).any():
        check((first.indices[finite], first.distances[finite]), z[finite], codebook)


@pytest.mark.quick(12)
@pytest.mark.parametrize(
    ("rows", "codes", "dim"),
    [
        *((1, 5000, 16), (2, 300, 64), (17, 4097, 8), (100, 1000, 33), (5000, 64, 8)),
        *((3, 60000, 2), (3000, 40, 4), (13, 3000, 4)),  # every code is measured
    ],
)
def test_thread_counts_agree(implementation, dtype, rows, codes, dim):
    codebook = (torch.randn(codes, dim) * 4).round().to(dtype)
    codebook[codes // 3] = float("nan")
    z = (torch.randn(rows, dim) * 4).round().to(dtype)
    z[rows // 2, 0] = float("inf")
    results = []
    for threads in (1, 2, 3, 5, 1):
        torch.set_num_threads(threads)
        results.append(implementation.quantize(z, codebook))
    for result in results[1:]:
        for part, first in zip(result, results[0], strict=True):
            assert torch.equal(part, first)


def test_repeated_runs_agree():
    z, codebook = torch.randn(500, 8), torch.randn(1000, 8)
    first = vqvae_fast.nearest_code(z, codebook)
    assert all(same(first, vqvae_fast.nearest_code(z, codebook)) for _ in range(20))


def test_a_row_has_the_same_answer_in_any_company(implementation):
    """Alone, in a batch, or at another place in it: blocks and tiles leave no trace."""
    z, codebook = torch.randn(140, 8), torch.randn(1000, 8)
    indices, distances = implementation.nearest_code(z, codebook)
    order = torch.randperm(140)
    shuffled = implementation.nearest_code(z[order], codebook)
    assert torch.equal(shuffled[0], indices[order])
    alone = [implementation.nearest_code(row, codebook) for row in z]
    assert torch.equal(torch.stack([a for a, _ in alone]), indices)
    if implementation.nearest_code.__module__ != "vqvae_fast.backends.reference.ops":
        assert torch.equal(shuffled[1], distances[order])
        assert torch.equal(torch.stack([d for _, d in alone]), distances)


@pytest.mark.parametrize(("dim", "scale"), [(8, 1e-19), (64, 5e-20), (256, 3e-20)])
def test_flushed_subnormals_lose_no_code(search_everywhere, dim, scale):
    """A process may flush subnormals to zero. Where one code is far off, the products of the others
    are lost then, though sums of them are not."""
    z = torch.randn(200, dim) * scale
    codebook = torch.randn(300, dim) * scale
    codebook[7] = 1.0
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormals")
    try:
        results = search_everywhere(z, codebook)
    finally:
        torch.set_flush_denormal(False)
    # The distances, which are subnormal in float32, may be flushed too; the choice may not suffer.
    wanted, _ = nearest(z, codebook)
    for isa, result in results:
        assert torch.equal(result.indices, wanted), isa


@pytest.mark.parametrize("nan", [False, True], ids=["finite rows", "a row with a NaN"])
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 27, 32])
def test_short_codes_have_the_bits_of_longer_ones(search_everywhere, dtype, dim, nan):
    """Zeros behind the vectors change no distance. Without them every code is measured, because the
    codebook is small; with them the codes are too long for that."""
    codes = 512 // (dim + 2)
    z = torch.randn(dim, 131).T.to(dtype)
    codebook = torch.randn(dim, codes).T.to(dtype)
    codebook[codes // 2 :] = (codebook[: (codes + 1) // 2] * 2).round() / 2  # ties
    z[40:90] = (z[40:90] * 2).round() / 2
    codebook[codes // 3, dim // 2] = torch.inf
    codebook[2 * codes // 3, dim - 1] = torch.nan
    if nan:
        z[17, 0] = torch.nan
    longer = [torch.nn.functional.pad(t, (0, 40)) for t in (z, codebook)]
    (_, wanted), *_ = search_everywhere(*longer)
    for isa, result in search_everywhere(z, codebook):
        assert same(result, wanted), isa


def test_a_thread_without_a_usable_code_has_no_say(implementation):
    """One row and many threads share out the codes. Where all distances overflow, the lowest
    usable index is due, though the first threads find none."""
    codebook = 1e200 * torch.randn(4000, 8, dtype=torch.float64)
    codebook[:3000] = torch.nan
    z = torch.randn(1, 8, dtype=torch.float64)
    torch.set_num_threads(5)
    quantized, indices, distances = implementation.quantize(z, codebook)
    assert indices.item() == 3000
    assert distances.item() == torch.inf
    assert torch.equal(quantized, codebook[3000:3001])
