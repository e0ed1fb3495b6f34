"""The Triton search in six kernels: how it is launched, and what each of them is left with."""

import pytest
import torch
from oracle import check, wrong_rows

from vqvae_fast import settings

if not settings.current.triton_interprets:
    pytest.skip("needs a process of Triton's interpreter", allow_module_level=True)

from vqvae_fast.backends.triton import measure, prepare, scan, search, search_launches, settle
from vqvae_fast.backends.triton.launch import Plan, Pointer, forget_plans
from vqvae_fast.backends.triton.packed_form import PackedForm
from vqvae_fast.backends.triton.rows import books_at, rows_at

pytestmark = pytest.mark.interpreted


@pytest.fixture(autouse=True)
def _six_kernels(monkeypatch):
    monkeypatch.setattr(search, "forced_form", "filter")


class Recorded:
    """A kernel that keeps the grid and the arguments of its launches."""

    def __init__(self, kernel):
        self.kernel, self.found = kernel, []

    def __getitem__(self, grid):
        def launch(*arguments, **constants):
            self.found.append((grid, arguments))
            return self.kernel[grid](*arguments, **constants)

        return launch


@pytest.fixture
def launches(monkeypatch):
    """The launches of the exact kernel: grid and arguments."""
    recorded = Recorded(search_launches.exact_kernel)
    monkeypatch.setattr(search_launches, "exact_kernel", recorded)
    return recorded.found


@pytest.fixture
def rechecks(monkeypatch):
    """A function that returns how many rows of the last slab of a single book were in doubt."""
    recorded = Recorded(search_launches.recheck_kernel)
    monkeypatch.setattr(search_launches, "recheck_kernel", recorded)

    def in_doubt():
        _, arguments = recorded.found[-1]
        num_in_doubt = arguments[-4]
        assert num_in_doubt.dtype == torch.int32
        return int(num_in_doubt[0])

    return in_doubt


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
    check(got, z, codebook)
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
    z, codebook = torch.randn(64, 64), (torch.rand(512, 64) * 2 - 1) / codes
    few = 6
    if data == "one of sixteen is huge":
        z[::16] *= 1e30
        few += 4
    elif data == "odd rows":
        z, codebook = z[:, :7].contiguous(), codebook[:, :7]
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
def test_hard_books_are_not_measured_in_full(launches, rechecks, measured, data):
    """Before there was a second pass, most of these rows were measured against every code."""
    rows, codes = 128, 4096
    z, codebook = HARD[data](rows, codes)
    result = search.nearest_code(z, codebook)
    check(result, z, codebook)
    (_, arguments), *_ = launches
    rescanned, without_bound = listed(arguments)
    assert rescanned <= rechecks()
    pairs = sum(measured) + without_bound * codes
    print(
        f"{data}: {rechecks()} in doubt, of which {rescanned} again; {without_bound} without a "
        f"bound; {pairs} measured"
    )
    assert sum(measured) >= rows
    assert without_bound <= rows // 100
    assert pairs <= rows * codes // 10


def test_few_of_the_rows_in_doubt_need_a_second_pass(launches, rechecks):
    """Only those whose second best group has the slot of the best one, of 16 slots."""
    z, codebook = torch.randn(2048, 32), torch.randn(8192, 32)
    check(search.nearest_code(z, codebook), z, codebook)
    (_, arguments), *_ = launches
    rescanned, without_bound = listed(arguments)
    assert rechecks() >= 20
    assert rescanned <= rechecks() // 4
    assert without_bound == 0


def test_twins_in_other_slots_and_parts(launches, rechecks):
    """Each code has a twin that float16 cannot tell from it, in the next slot and another part."""
    codes = torch.randn(2048, 16)
    codebook = torch.cat([codes, torch.randn(1, 16), codes * (1 + 1e-5)])
    z = codes[torch.randint(2048, (100,))] + 0.01 * torch.randn(100, 16)
    check(search.nearest_code(z, codebook), z, codebook)
    (_, arguments), *_ = launches
    assert rechecks() == 100
    assert listed(arguments) == (0, 0)


def test_rows_in_several_slabs(launches, rechecks, monkeypatch):
    """Each slab begins with no rows in doubt; the rows for `rescan` of all slabs are listed."""
    monkeypatch.setattr(search_launches, "_ENTRIES", 1)  # a slab has one block of rows
    forget_plans()
    z, codebook = torch.randn(300, 8), torch.randn(512, 8).repeat(2, 1)
    z[256:] = z[:44]
    quantized, indices, distances = search.quantize(z, codebook)
    check((indices, distances), z, codebook)
    assert torch.equal(quantized, codebook[indices])
    assert (indices < 512).all()
    (_, arguments), *_ = launches
    assert rechecks() == 44
    assert listed(arguments) == (300, 0)
    forget_plans()


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
    z = torch.zeros(20, 16)
    z[10:, 0] = 0.25
    check(search.nearest_code(z, codebook), z, codebook, exact_ties=True)


@pytest.fixture
def bound_without_base(monkeypatch):
    """A function that takes from the bound all that the base adds to a score's error."""
    bound = settle.lowest_score

    def forgetful(score, distance, scale, base, *rest):
        return bound(score, distance, scale, base * 0, *rest) + base

    return lambda: monkeypatch.setattr(settle, "lowest_score", forgetful)


@pytest.mark.parametrize("dim", [8, 16])  # the product adds the start, or the start is loaded
def test_the_bound_counts_what_the_base_adds_to_the_error_of_the_tiles_number(
    dim, bound_without_base
):
    """Nine large codes make the base large; all others and the rows lie together."""
    codebook, z = (torch.randint(-8, 9, (n, 8)) / 512 for n in (2048, 500))
    codebook[2047 * torch.arange(9) // 8] = torch.randint(-256, 257, (9, 8)) / 512
    codebook, z = (torch.nn.functional.pad(t, (0, dim - 8)) for t in (codebook, z))
    assert not wrong_rows(search.nearest_code(z, codebook)[0], z, codebook)
    bound_without_base()
    assert wrong_rows(search.nearest_code(z, codebook)[0], z, codebook)


def test_nothing_is_said_of_negative_scores_but_that_they_are_not_positive(monkeypatch):
    """The nearest code may have a negative key, which is in no order with its like."""
    # The centre of these nine is 0. With half of its base, scores rise by half of their square.
    sampled = torch.eye(8)[torch.arange(9) % 8]
    scale_and_base = prepare.scale_and_base

    def half_base(*arguments):
        scale, base = scale_and_base(*arguments)
        return scale, 0.5 * base

    monkeypatch.setattr(prepare, "scale_and_base", half_base)
    # All scores of a row at `middle` are -3e-5, which is what packing is off: those codes lie on a
    # sphere around it. So of many a row one group alone has a score above 0.
    middle = -0.05 * torch.rand(8)
    directions = torch.nn.functional.normalize(torch.randn(300, 8), dim=1)
    codebook = middle + (1 + middle.square().sum() + 2 * 3e-5).sqrt() * directions
    codebook[299 * torch.arange(9) // 8] = sampled
    z = middle + 1e-5 * torch.randn(500, 8)
    assert not wrong_rows(search.nearest_code(z, codebook)[0], z, codebook)
    score_of = scan.score_of
    monkeypatch.setattr(scan, "score_of", lambda key, negative: score_of(key, scan.UNSEEN))
    assert wrong_rows(search.nearest_code(z, codebook)[0], z, codebook)


@pytest.mark.parametrize("dim", [8, 16, 64])
@pytest.mark.parametrize("size", [0.0, 0.1, 1.0, 30.0])
def test_scores_of_near_codes_are_not_negative(launches, dim, size):
    """Also where the nearest code is farther away than the centre: every row has a bound."""
    z, codebook = size * torch.randn(300, dim), torch.randn(1000, dim)
    check(search.nearest_code(z, codebook), z, codebook)
    (_, arguments), *_ = launches
    with_bound, without_bound = listed(arguments)
    assert with_bound <= 15
    assert without_bound == 0


@pytest.mark.parametrize("codebook", [torch.ones(1, 8), torch.ones(1, 20), torch.eye(2, 8)])
def test_few_codes_are_told_from_padding(launches, codebook):
    """Padding has negative keys, of which it is known only that they do not exceed 0."""
    z = torch.randn(50, codebook.shape[1])
    check(search.nearest_code(z, codebook), z, codebook)
    (_, arguments), *_ = launches
    assert listed(arguments) == (0, 0)


def test_far_codes_beside_what_three_pieces_can_hold(launches):
    """Codes whose half square exceeds float16 score too high, and win where they are nearest."""
    z, codebook = torch.randn(300, 8), torch.randn(1000, 8)
    codebook[7::100] *= 1e4
    codebook[8::100] = float("nan")
    z[::10] = codebook[7] * 0.999
    check(search.nearest_code(z, codebook), z, codebook)
    (_, arguments), *_ = launches
    assert sum(listed(arguments)) <= 45


def test_three_pieces_add_up_to_what_a_score_starts_at():
    dim = 8
    codebook = torch.randn(1000, dim) * 2.0 ** torch.linspace(-12, 14, 1000)[:, None]
    codebook[-9:] = 1.0
    codebook[5], codebook[6], z = float("nan"), 1e30, torch.zeros(4, dim)
    packed, arena = run_prepare(z, codebook, block_dim=16, start_columns=3)

    def read(pointer, *shape):
        return pointer.tensor((arena,)).view(shape).double()

    codes = read(packed.codes, packed.rows, packed.columns)
    base, scale = read(packed.base), read(packed.scale)
    pieces = codes[:, dim : dim + 3]
    scaled = (codebook.double() - read(packed.centre, packed.columns)[:dim]) * scale
    square = scaled.square().sum(1)
    is_packed = codes[:1000, :dim].ne(0).any(1)
    assert not is_packed[5:7].any()
    assert is_packed.sum() > 900
    start = torch.where(is_packed, base - square / 2, 0)
    holds = is_packed & (start > -65504)
    assert (is_packed & ~holds).sum() > 50
    error = (pieces[:1000].sum(1) - start).abs()[holds]
    assert (error <= 2.0**-25 + dim * 2.0**-24 * (base + square)[holds]).all()
    magnitude = pieces[:1000].abs().sum(1)[holds]
    assert (magnitude <= 1.001 * start.abs()[holds] + 2.0**-14).all()
    assert (pieces[:1000][is_packed & ~holds].sum(1) >= -65504).all()
    assert (pieces[1000:] == -65504).all()  # padding
    assert (pieces[5:7] == -65504).all()
    assert not codes[:, dim + 3 :].any()


def run_prepare(z, codebook, *, block_dim, start_columns):
    """The codes [K, D] as the kernel `prepare` packs them, and the memory where they lie."""
    plan = Plan()
    limits = tuple(plan.zeros((1,), torch.int32) for _ in range(3))
    books = books_at(Pointer(2, codebook.dtype), codebook.shape, codebook.stride())
    form = PackedForm(books.shape, torch.float16, 128, block_dim, start_columns)
    packed = form.laid_out(plan.memory, limits)
    prepare.prepare(
        plan,
        books,
        rows_at(Pointer(1, z.dtype), z.shape, z.stride()),
        0,
        packed,
        block_dim=block_dim,
        start_columns=start_columns,
        codes_at_once=16,
    )
    return packed, plan.run(z, codebook)
