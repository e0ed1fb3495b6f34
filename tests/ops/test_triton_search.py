"""The Triton search in five kernels: how it is launched, and what each of them is left with."""

import pytest
import torch
from search_oracle import check

from vqvae_fast import reference, settings

if not settings.current.triton_interprets:
    pytest.skip("needs a process of Triton's interpreter", allow_module_level=True)

from vqvae_fast.triton import measure, search, settle


@pytest.fixture(autouse=True)
def _five_kernels(monkeypatch):
    monkeypatch.setattr(search, "forced_form", "filter")


@pytest.fixture
def launches(monkeypatch):
    """The launches of the exact kernel: grid and arguments."""
    kernel, found = search.exact_kernel, []

    class Recorded:
        def __getitem__(self, grid):
            def launch(*arguments, **constants):
                found.append((grid, arguments))
                return kernel[grid](*arguments, **constants)

            return launch

    monkeypatch.setattr(search, "exact_kernel", Recorded())
    return found


def listed(arguments):
    """How many rows of a single book the exact kernel is told of: with a bound, and without one."""
    num_listed = arguments[-5]
    assert num_listed.dtype == torch.int32
    return int(num_listed[0]), int(num_listed[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("heads", [1, 3, 40])
def test_books_share_the_programs_for_rows_in_doubt(launches, heads, dtype):
    z, codebook = torch.randn(heads, 3, 5).to(dtype), torch.randn(heads, 300, 5).to(dtype)
    z[:, 0] = float("nan")
    got = search.nearest_code(z, codebook)
    wanted = reference.nearest_code(z, codebook)
    assert torch.equal(got[0], wanted[0])
    ((programs, books), arguments), *others = launches
    assert not others
    assert books == heads
    assert programs * heads <= max(heads, 4 * search.multiprocessors(z.device))
    arrivals, part_distances, part_codes, items = arguments[-4:]
    assert items == programs
    assert arrivals.numel() == heads * programs
    assert part_distances.numel() == part_codes.numel()
    assert part_codes.numel() % (heads * programs) == 0


@pytest.mark.parametrize("codes", [1 << 9, 1 << 17, 1 << 19, 1 << 22])
@pytest.mark.parametrize("data", ["normal", "odd rows", "one of sixteen is huge"])
def test_latents_fit_float16_beside_a_codebook_just_initialised(launches, codes, data):
    """uniform(-1/K, 1/K), of which 512 codes are enough. Listed rows are measured in float64."""
    z, codebook = torch.randn(200, 64), (torch.rand(512, 64) * 2 - 1) / codes
    few = 20
    if data == "one of sixteen is huge":
        z[::16] *= 1e30
        few += 13
    elif data == "odd rows":
        z, codebook = torch.randn(200, 7), codebook[:, :7]
        z[3:5] = torch.tensor([[float("nan")], [float("inf")]])
    indices, distances = search.nearest_code(z, codebook)
    finite = z.isfinite().all(-1)
    check((indices[finite], distances[finite]), z[finite], codebook)
    _, arguments = launches[0]
    assert listed(arguments)[1] <= few


def test_more_books_than_a_grid_can_have(launches, monkeypatch):
    monkeypatch.setattr(search, "_MOST_BOOKS", 2)
    z, codebook = torch.randn(5, 2, 4, 6), torch.randn(5, 9, 6)
    quantized, indices, distances = search.quantize(z, codebook)
    assert [grid[1] for grid, _ in launches] == [2, 2, 1]
    for book in range(5):
        check((indices[book], distances[book]), z[book], codebook[book])
        assert torch.equal(quantized[book], codebook[book][indices[book]])


def collapsed(rows, codes):
    return torch.randn(rows, 8), torch.randn(1, 8).repeat(codes, 1)


def each_16_times(rows, codes):
    return torch.randn(rows, 32), torch.randn(codes // 16, 32).repeat(16, 1)


def dead_codes_near(rows, codes):
    """Half of the codes at one point, which is near the rows."""
    codebook = torch.randn(codes, 32)
    codebook[::2] = 0.01 * torch.randn(1, 32)
    return 0.1 * torch.randn(rows, 32), codebook


def few_dimensions(dims):
    return lambda rows, codes: (torch.randn(rows, dims), torch.randn(codes, dims))


HARD = {
    "collapsed": collapsed,
    "each code 16 times": each_16_times,
    "dead codes near the rows": dead_codes_near,
    "one dimension": few_dimensions(1),
    "two dimensions": few_dimensions(2),
}


@pytest.fixture
def measured(monkeypatch):
    """How many pairs of a row and a code were measured in float64 outside the exact kernel."""
    counts, exact_distance = [], measure.exact_distance

    def counted(z, z_stride, code, code_element, centre, scale, wanted, dim, CHUNK):
        counts.append(int(wanted.handle.data.sum()))
        return exact_distance(z, z_stride, code, code_element, centre, scale, wanted, dim, CHUNK)

    monkeypatch.setattr(measure, "exact_distance", counted)
    monkeypatch.setattr(settle, "exact_distance", counted)
    return counts


@pytest.mark.parametrize("data", HARD)
def test_hard_books_are_not_measured_in_full(launches, measured, data, record_property):
    """Before there was a second pass, most of these rows were measured against every code."""
    rows, codes = 128, 4096
    z, codebook = HARD[data](rows, codes)
    result = search.nearest_code(z, codebook)
    check(result, z, codebook)
    (_, arguments), *_ = launches
    in_doubt, without_bound = listed(arguments)
    pairs = sum(measured) + without_bound * codes
    print(f"{data}: {in_doubt} in doubt, {without_bound} without a bound, {pairs} measured")
    assert sum(measured) >= rows
    assert without_bound <= rows // 100
    assert pairs <= rows * codes // 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("dim", "copies"), [(3, 40), (64, 10), (257, 10)])
def test_rows_in_doubt_in_every_way(dtype, dim, copies):
    """Copies in every part, tile and group; rows with NaN and outliers among them; three books."""
    codebook = torch.randn(3, 40, dim).repeat(1, copies, 1).to(dtype)
    codebook[1, 300] = 60000.0  # in one book, a code that may not fit
    z = (codebook[:, torch.randint(40, (50,))].float() + 1e-3 * torch.randn(3, 50, dim)).to(dtype)
    z[:, 7, 1], z[:, 9] = float("nan"), 5e4
    wide = torch.empty(3, 50, 2 * dim + 1, dtype=dtype)
    wide[..., : 2 * dim : 2] = z
    z = wide[..., : 2 * dim : 2]
    quantized, indices, distances = search.quantize(z, codebook)
    finite = torch.arange(50) != 7
    check((indices[:, finite], distances[:, finite]), z[:, finite], codebook)
    assert distances[:, 7].isnan().all()
    assert (indices[:, 7] == 0).all()
    for book in range(3):
        assert torch.equal(quantized[book], codebook[book][indices[book]])


def test_ties_of_codes_that_are_no_copies():
    """Codes at equal float64 distances from every row, in groups, tiles and parts far apart."""
    codebook = torch.zeros(3000, 16)
    for code in range(3000):
        codebook[code, code % 16] = 1.0 if code // 16 % 2 else -1.0
    z = torch.zeros(70, 16)
    z[35:, 0] = 0.25
    check(search.nearest_code(z, codebook), z, codebook, exact_ties=True)
