"""The k nearest codes of each vector, against a sort of all float64 distances."""

import itertools

import pytest
import torch
from adversarial import CASES, DOUBLE, FILTERED, HALF, SMALL, Size
from kernels import DTYPES, EVERY_WAY, INSTRUCTION_SETS, ON_THE_HOST, compiled, same_bits
from oracle import rounding
from test_search_duplicates import BOOKS

import vqvae_fast
from vqvae_fast.backends.reference import ops as reference
from vqvae_fast.bench.memory import peak_of

SETS = [name for name in EVERY_WAY if name != ON_THE_HOST]
DISPATCHED = torch.ops.vqvae_fast.nearest_codes


def check(result, z, codebook, k, *, exact_ties=False):
    """Raise an AssertionError where a search for k codes breaks its contract."""
    indices, distances = result
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    assert (indices.dtype, distances.dtype) == (torch.int64, wide)
    assert indices.shape == distances.shape == (*z.shape[:-1], k)
    if codebook.dim() == 3:
        for h, book in enumerate(codebook):
            check((indices[h], distances[h]), z[h], book, k, exact_ties=exact_ties)
        return
    rows = z.reshape(-1, z.shape[-1])
    if len(rows) == 0:
        return
    indices, distances = indices.reshape(-1, k), distances.reshape(-1, k)
    for part in torch.arange(len(rows)).split(max(1, (1 << 22) // codebook.numel())):
        _check_rows(rows[part], codebook, indices[part], distances[part], k, exact_ties)


def _check_rows(z, codebook, indices, distances, k, exact_ties):
    assert ((indices >= 0) & (indices < len(codebook))).all()
    ordered = indices.sort(dim=1).values
    assert (ordered[:, 1:] > ordered[:, :-1]).all(), "a code was chosen twice"
    measured = (z.double()[:, None] - codebook.double()).square_().sum(dim=2)
    usable = codebook.isfinite().all(dim=1)
    nan = z.isnan().any(dim=1)
    assert (indices[nan] == torch.arange(k)).all()
    assert distances[nan].isnan().all()
    rest = ~nan
    z, measured, indices, distances = (t[rest] for t in (z, measured, indices, distances))
    # The codes that are not finite come last, by their index.
    finite = min(k, int(usable.sum()))
    assert usable[indices[:, :finite]].all()
    last = (~usable).nonzero()[:, 0][: k - finite]
    assert (indices[:, finite:] == last).all()
    assert not distances[:, finite:].isfinite().any()
    indices, distances = indices[:, :finite], distances[:, :finite]
    least = torch.where(usable, measured, torch.inf).sort(dim=1, stable=True)
    of_chosen = measured.gather(1, indices)
    excess = 1e-12 if distances.dtype == torch.float64 else 1e-6
    allowed = least.values[:, :finite] * (1 + max(excess, 2 * rounding(z.shape[1])))
    assert (of_chosen <= allowed).all(), "not the nearest codes"
    assert (distances >= 0).all()
    assert (distances[:, 1:] >= distances[:, :-1]).all(), "not in the order of the distances"
    last_digit = rounding(z.shape[1]) if distances.dtype == torch.float64 else 2.0**-24
    slack = 1.01 * last_digit * of_chosen
    slack += torch.finfo(distances.dtype).smallest_normal * 2.0**-22
    close = ((distances.double() - of_chosen).abs() <= slack) & of_chosen.isfinite()
    assert (close | (distances == of_chosen.to(distances.dtype))).all()
    if exact_ties:
        assert torch.equal(indices, least.indices[:, :finite])


def in_each_set(z, codebook, k):
    """The op in every instruction set, with the same bits; without C++ the op alone."""
    results = {}
    for name in SETS or ["the op"]:
        if SETS:
            compiled(name)
        results[name] = DISPATCHED(z, codebook, k)
    first = next(iter(results.values()))
    for name, result in results.items():
        for mine, other in zip(result, first, strict=True):
            assert same_bits(mine, other), f"{name} has other bits than {next(iter(results))}"
    return first


IMPLEMENTATIONS = {"every instruction set": in_each_set, "reference": reference.nearest_codes}


@pytest.fixture(params=IMPLEMENTATIONS)
def search(request, restore):
    return IMPLEMENTATIONS[request.param]


def numbers(codes):
    return sorted({k for k in (1, 2, 7, 100, codes, 1024) if k <= codes})


# Sizes off every tile, panel, block and pass; the filter serves some of them.
SHAPES = [
    (1, 1, 1),
    (3, 5, 2),
    (9, 50, 4099),
    (131, 145, 17),
    (70, 1031, 8),
    (67, 4200, 33),
    (3, 9001, 12),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(search, dtype, shape):
    rows, codes, dim = shape
    z, codebook = torch.randn(rows, dim).to(dtype), torch.randn(codes, dim).to(dtype)
    for k in numbers(codes):
        check(search(z, codebook, k), z, codebook, k)


def adversarial():
    for size in (SMALL, *FILTERED):
        for dtype, cases in (
            (torch.float32, CASES),
            (torch.bfloat16, CASES),
            (torch.float16, HALF),
            (torch.float64, {**CASES, **DOUBLE}),
        ):
            for case, make in cases.items():
                yield pytest.param(dtype, make, size, id=f"{case}-{dtype}-{size.rows}")


@pytest.mark.quick(60)
@pytest.mark.parametrize(("dtype", "make", "size"), list(adversarial()))
def test_values(search, dtype, make, size):
    z, codebook = (part.to(dtype) for part in make(size))
    for k in (2, 40):
        check(search(z, codebook, k), z, codebook, k)


@pytest.mark.parametrize("k", [1, 3, 90, 517])
@pytest.mark.parametrize("dim", [1, 2, 8, 33])
def test_integers_tie_in_masses(search, dim, k):
    """Small integers: all arithmetic is exact, so the lowest indices are due in their order."""
    z = torch.randint(-2, 3, (300, dim)).float() + 1000
    codebook = torch.randint(-2, 3, (517, dim)).float() + 1000
    check(search(z, codebook, k), z, codebook, k, exact_ties=True)


@pytest.mark.parametrize("book", BOOKS)
def test_copies(search, book):
    """Copies have the same distance: the lowest indices come first, and nothing is left out."""
    z = torch.randn(150, 16)
    codebook = BOOKS[book](torch.randn(1024, 16))
    for k in (2, 30, 900):
        indices, _ = result = search(z, codebook, k)
        check(result, z, codebook, k)
        # Among the chosen copies of one code no index may be passed over.
        finite = codebook[indices].isfinite().all(dim=-1)
        keys = torch.unique(codebook.nan_to_num(7e8), dim=0, return_inverse=True)[1]
        for row in range(0, 150, 29):
            chosen = indices[row][finite[row]]
            for key in keys[chosen].unique():
                mine = chosen[keys[chosen] == key]
                assert torch.equal(mine, (keys == key).nonzero()[: len(mine), 0])


SPECIAL = {
    "NaN": lambda z, e: (z.index_fill(0, torch.tensor([3, 60]), torch.nan), e),
    "infinite rows": lambda z, e: (z.index_fill(0, torch.tensor([3, 60]), -torch.inf), e),
    "a code with NaN": lambda z, e: (z, e.index_fill(0, torch.tensor([5]), torch.nan)),
    "few codes are finite": lambda z, e: (z, e.index_fill(0, torch.arange(3, len(e)), torch.inf)),
    "no code is finite": lambda z, e: (z, e.index_fill(0, torch.arange(len(e)), torch.nan)),
    "all of it": lambda z, e: (
        z.index_fill(1, torch.tensor([0]), torch.inf).index_fill(0, torch.tensor([3]), torch.nan),
        e.index_fill(0, torch.arange(0, len(e), 2), -torch.inf),
    ),
}


@pytest.mark.parametrize("size", [Size(70, 101, 5), FILTERED[0]], ids=["small", "filtered"])
@pytest.mark.parametrize("case", SPECIAL)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite(search, dtype, case, size):
    z, codebook = SPECIAL[case](size.z().to(dtype), size.book().to(dtype))
    for k in (1, 2, 80, size.codes):
        check(search(z, codebook, k), z, codebook, k)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*SPECIAL, "offset", "copies"])
def test_one_code_is_the_nearest_code(restore, dtype, case):
    z, codebook = torch.randn(133, 17).to(dtype), torch.randn(700, 17).to(dtype)
    if case in SPECIAL:
        z, codebook = SPECIAL[case](z, codebook)
    elif case == "offset":
        z, codebook = z + 1000, codebook + 1000
    else:
        codebook = codebook[torch.arange(700) % 50]
    for name in SETS or [None]:
        if name is not None:
            compiled(name)
        one, nearest = DISPATCHED(z, codebook, 1), torch.ops.vqvae_fast.nearest_code(z, codebook)
        first = DISPATCHED(z, codebook, 2)
        for single, several, expected in zip(one, first, nearest, strict=True):
            assert same_bits(single[..., 0], expected)
            assert same_bits(several[..., 0], expected)


LAYOUTS = {
    "transposed": lambda: torch.randn(6, 70).T,
    "every second element": lambda: torch.randn(70, 12)[:, ::2],
    "feature map": lambda: torch.randn(3, 6, 5, 7).movedim(1, -1),
    "every order of strides": lambda: torch.randn(4, 6, 3, 5).permute(2, 0, 3, 1),
    "expanded rows": lambda: torch.randn(1, 6).expand(70, 6),
    "one vector": lambda: torch.randn(6),
    "no vectors": lambda: torch.randn(0, 3, 6),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(search, layout):
    z = LAYOUTS[layout]()
    for codebook in (torch.randn(53, 6), torch.randn(6, 53).T, torch.randn(106, 13)[::2, 1::2]):
        check(search(z, codebook, 9), z, codebook, 9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_books(search, dtype):
    z, codebook = torch.randn(3, 4, 5, 7).to(dtype), torch.randn(3, 29, 7).to(dtype)
    check(search(z, codebook, 6), z, codebook, 6)
    check(search(z[:, 0, 0], codebook, 6), z[:, 0, 0], codebook, 6)


@pytest.mark.skipif(not INSTRUCTION_SETS, reason="there are no C++ kernels")
@pytest.mark.parametrize("k", [3, 60])
def test_every_number_of_threads_gives_the_same_bits(restore, k):
    z, codebook = torch.randn(301, 24), torch.randn(2000, 24)
    codebook[1500:1700] = codebook[:200]
    wanted = DISPATCHED(z, codebook, k)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        for mine, other in zip(DISPATCHED(z, codebook, k), wanted, strict=True):
            assert same_bits(mine, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("books", [(), (3,)])
def test_packed_codebooks(dtype, books):
    z, codebook = torch.randn(*books, 61, 40).to(dtype), torch.randn(*books, 700, 40).to(dtype)
    for k in (1, 9):
        plain = vqvae_fast.nearest_codes(z, codebook, k)
        packed = vqvae_fast.nearest_codes(z, vqvae_fast.pack(codebook), k)
        for mine, other in zip(packed, plain, strict=True):
            assert same_bits(mine, other)


@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_other_metrics(metric):
    z, codebook = torch.randn(40, 12), torch.randn(300, 12)
    product = z.double() @ codebook.double().T
    if metric == "cosine":
        product /= z.double().norm(dim=1)[:, None] * codebook.double().norm(dim=1)
    values, expected = product.sort(dim=1, descending=True)
    indices, distances = vqvae_fast.nearest_codes(z, codebook, 20, metric=metric)
    assert torch.equal(indices, expected[:, :20])
    offset = 1 if metric == "cosine" else 0
    torch.testing.assert_close(distances.double(), offset - values[:, :20], rtol=1e-5, atol=1e-6)


def test_codes_of_products_are_read_in_parts():
    """The codes of all rows would be 1.4 GiB in float64."""
    z, codebook = torch.randn(2000, 256), torch.randn(1000, 256)
    peak = peak_of(lambda: vqvae_fast.nearest_codes(z, codebook, 300, metric="dot"))
    if peak is None:
        pytest.skip("this system does not tell the peak of a process")
    assert peak.beside_outputs < 128 << 20


@pytest.mark.parametrize("k", [1, 5])
def test_copies_tie_in_the_reference_whatever_the_layout(k):
    z = torch.randn(33, 300, generator=torch.Generator().manual_seed(0)).T.contiguous().T
    codebook = torch.randn(1, 300, generator=torch.Generator().manual_seed(1)).repeat(7, 1)
    indices, _ = reference.nearest_codes(z, codebook, k)
    assert torch.equal(indices, torch.arange(k).expand(33, k))


def test_results_have_names_and_no_gradient():
    z, codebook = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    result = vqvae_fast.nearest_codes(z, codebook, 3)
    assert result._fields == ("indices", "distances")
    assert not result.distances.requires_grad


@pytest.mark.parametrize("k", [0, -1, 10])
@pytest.mark.parametrize("form", ["public", "op", "packed", "reference"])
def test_k_out_of_range(form, k):
    z, codebook = torch.randn(5, 4), torch.randn(9, 4)
    calls = {
        "public": vqvae_fast.nearest_codes,
        "op": DISPATCHED,
        "packed": lambda z, codebook, k: vqvae_fast.nearest_codes(z, vqvae_fast.pack(codebook), k),
        "reference": reference.nearest_codes,
    }
    with pytest.raises(ValueError, match=f"k must be from 1 to K=9, got {k}"):
        calls[form](z, codebook, k)


def test_wrong_arguments():
    z, codebook = torch.randn(5, 4), torch.randn(9, 4)
    with pytest.raises(TypeError, match=r"k must be an integer, got 2\.5"):
        vqvae_fast.nearest_codes(z, codebook, 2.5)
    with pytest.raises(TypeError, match="must have z's dtype"):
        vqvae_fast.nearest_codes(z, codebook.double(), 2)
    with pytest.raises(ValueError, match=r"codebook must be \[K, D=4\]"):
        vqvae_fast.nearest_codes(z, codebook[:, :3], 2)
    with pytest.raises(ValueError, match="metric must be one of"):
        vqvae_fast.nearest_codes(z, codebook, 2, metric="manhattan")
    for metric in ("dot", "cosine"):
        with pytest.raises(ValueError, match=f"serves metric='euclidean', got '{metric}'"):
            vqvae_fast.nearest_codes(z, vqvae_fast.pack(codebook), 2, metric=metric)


# ---- What torch does with the op ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad, dtype):
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if not requires_grad:
        tests.append("test_aot_dispatch_dynamic")
    shapes = [((9, 5), (7, 5)), ((5,), (7, 5)), ((2, 3, 5), (2, 7, 5)), ((0, 5), (7, 5))]
    for z_shape, codebook_shape in shapes:
        z, codebook = (
            torch.randn(shape).to(dtype).requires_grad_(requires_grad)
            for shape in (z_shape, codebook_shape)
        )
        packed = vqvae_fast.pack(codebook.detach()).packed
        for op, arguments in (
            (DISPATCHED, (z, codebook, 3)),
            (torch.ops.vqvae_fast.nearest_packed_codes, (z, codebook, packed, 3)),
        ):
            result = torch.library.opcheck(op.default, arguments, test_utils=tests)
            assert set(result.values()) == {"SUCCESS"}


def scaled(z, codebook, k):
    found = vqvae_fast.nearest_codes(z * 2, codebook, k)
    return found.indices, found.distances + 1


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_in_one_graph(dynamic):
    compiled_function = torch.compile(scaled, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows, k in itertools.product((9, 12), (2, 3)):
        z, codebook = torch.randn(rows, 5), torch.randn(7, 5)
        got = compiled_function(z, codebook, k)
        for mine, other in zip(got, scaled(z, codebook, k), strict=True):
            assert torch.equal(mine, other)


def test_exports():
    class Search(torch.nn.Module):
        def forward(self, z, codebook):
            return scaled(z, codebook, 3)

    rows = torch.export.Dim("rows", min=2)
    pair = torch.randn(9, 5), torch.randn(7, 5)
    program = torch.export.export(Search(), pair, dynamic_shapes={"z": {0: rows}, "codebook": None})
    z = torch.randn(12, 5)
    for mine, other in zip(program.module()(z, pair[1]), scaled(z, pair[1], 3), strict=True):
        assert torch.equal(mine, other)


def test_autocast_searches_in_float32():
    z, codebook = torch.randn(9, 5), torch.randn(7, 5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = vqvae_fast.nearest_codes(z, codebook, 3)
        packed = vqvae_fast.nearest_codes(z, vqvae_fast.pack(codebook), 3)
    expected = vqvae_fast.nearest_codes(z, codebook.float(), 3)
    for found in (result, packed):
        for mine, other in zip(found, expected, strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
@pytest.mark.filterwarnings("ignore:There is a performance drop because:UserWarning")
def test_vmap(metric):
    z, codebook = torch.randn(3, 5, 8), torch.randn(10, 8)

    def search(vectors):
        return vqvae_fast.nearest_codes(vectors, codebook, 4, metric=metric)

    for mapped, whole in zip(torch.vmap(search)(z), search(z), strict=True):
        assert same_bits(mapped, whole)
