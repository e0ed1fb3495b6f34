"""A codebook that the Triton kernels packed beforehand gives the bits of the codebook itself."""

import re

import pytest
import torch
from adversarial import CASES, SMALL
from kernels import same_bits
from oracle import check
from torch import Tensor

import vqvae_fast
from vqvae_fast import settings

if not settings.current.triton_interprets:
    pytest.skip("needs a process of Triton's interpreter", allow_module_level=True)

from vqvae_fast.backends.triton import kept_books, residual, search, search_launches
from vqvae_fast.backends.triton.configurations import configuration
from vqvae_fast.backends.triton.launch import forget_plans

pytestmark = pytest.mark.interpreted

FORMS = pytest.mark.parametrize("form", ["filter", "direct"])
SEARCHES = [vqvae_fast.nearest_code, vqvae_fast.quantize]
# With the starts in the product and without, in pieces, and more than a tile and a piece.
SHAPES = [(40, 300, 8), (40, 300, 16), (7, 129, 24), (130, 1000, 64), (9, 50, 150), (5, 20, 300)]


def same(found: tuple, wanted: tuple) -> bool:
    return all(same_bits(*pair) for pair in zip(found, wanted, strict=True))


@pytest.fixture
def packings(monkeypatch):
    """The packings that were planned: one for each plan of a search that packs."""
    found = []

    def recorded(plan, *arguments, **options):
        found.append(plan)
        return kept_books.prepare(plan, *arguments, **options)

    monkeypatch.setattr(search_launches, "prepare", recorded)
    monkeypatch.setattr(residual, "prepare", recorded)
    forget_plans()
    yield found
    forget_plans()


@FORMS
@pytest.mark.quick(interpreted=4)
@pytest.mark.parametrize("case", CASES)
def test_named_values(monkeypatch, case: str, form: str) -> None:
    """Rows beside codes a millionth of their size, too, which the scale leaves no room for."""
    monkeypatch.setattr(search, "forced_form", form)
    z, codebook = (part.float() for part in CASES[case](SMALL))
    packed = vqvae_fast.pack(codebook)
    assert packed.packed.numel() > 0
    wanted = vqvae_fast.nearest_code(z, codebook)
    check(wanted, z, codebook)
    assert same(vqvae_fast.nearest_code(z, packed), wanted)


@pytest.mark.quick(interpreted=3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "codes", "dim"), SHAPES)
@pytest.mark.parametrize("heads", [None, 3])
def test_shapes(monkeypatch, packings, rows, codes, dim, heads, dtype) -> None:
    monkeypatch.setattr(search, "forced_form", "filter")
    books = () if heads is None else (heads,)
    z = torch.randn(*books, rows, dim).to(dtype)
    codebook = torch.randn(*books, codes, dim).to(dtype)
    if heads is not None:
        codebook[1] *= 100
    packed = vqvae_fast.pack(codebook)
    found = [function(z, packed) for function in SEARCHES]
    assert not packings
    for function, mine in zip(SEARCHES, found, strict=True):
        assert same(mine, function(z, codebook))
    assert len(packings) == len(SEARCHES)


@pytest.mark.parametrize("strided", [False, True])
def test_layouts_leave_no_trace(monkeypatch, strided: bool) -> None:
    monkeypatch.setattr(search, "forced_form", "filter")
    maps = torch.randn(2, 20, 5, 7).movedim(1, -1)
    codebook = torch.randn(20, 300).T if strided else torch.randn(300, 20)
    bytes_of_strided = torch.ops.vqvae_fast.pack_codebook(codebook)
    packed = vqvae_fast.pack(codebook)
    assert torch.equal(bytes_of_strided, packed.packed)
    assert same(vqvae_fast.quantize(maps, packed), vqvae_fast.quantize(maps, codebook))


def test_rows_far_beyond_the_scale_of_the_codes(monkeypatch) -> None:
    """A search that packs lowers the scale for them; here they do not fit float16."""
    monkeypatch.setattr(search, "forced_form", "filter")
    codebook = torch.randn(300, 16) * 1e-7
    z = torch.randn(20, 16)
    wanted = vqvae_fast.nearest_code(z, codebook)
    check(wanted, z, codebook)
    assert same(vqvae_fast.nearest_code(z, vqvae_fast.pack(codebook)), wanted)


@pytest.mark.parametrize(("heads", "dim"), [(None, 16), (None, 8), (3, 16), (3, 64)])
def test_the_bytes_are_what_a_search_would_pack(heads: int | None, dim: int) -> None:
    """Rows that are the codes themselves: what the bytes were made for, bit for bit."""
    shape = (300, dim) if heads is None else (heads, 300, dim)
    codebook = torch.randn(shape)
    packed = vqvae_fast.pack(codebook)
    assert packed.packed.shape[:-1] == codebook.shape[:-2]
    form = kept_books.form_of_books(codebook.shape, codebook.dtype, codebook.device)
    region = kept_books.Region(0)
    kept = form.laid_out(region)
    assert region.bytes_taken <= packed.packed.numel()
    assert kept.codes.dtype == torch.float16

    def read(pointer, *shape):
        return pointer.tensor((packed.packed.view(-1),)).view(heads or 1, *shape)

    codes = read(kept.codes, kept.rows, kept.columns)[:, :300, :dim].double()
    scale, centre = read(kept.scale)[:, None, None], read(kept.centre, 1, kept.columns)
    scaled = (codebook.view(heads or 1, 300, dim).double() - centre[..., :dim]) * scale.double()
    assert (codes - scaled).abs().max() <= 2.0**-11 * scaled.abs().max()
    assert (scaled.abs().amax((1, 2)) < 4).all()
    longest = read(kept.max_norm).view(torch.float32)
    torch.testing.assert_close(longest, scaled.norm(dim=2).amax(1).float(), rtol=1e-4, atol=0)
    assert not read(kept.has_outliers).any()


# ---- Residual quantization -----------------------------------------------------------------------


@pytest.mark.quick(interpreted=3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [8, 14, 16, 32, 64, 128])
def test_residual_stages(packings, dim: int, dtype: torch.dtype) -> None:
    codebooks = (torch.randn(3, 300, dim) * 0.7 ** torch.arange(3)[:, None, None]).to(dtype)
    z = torch.randn(4, 10, dim).to(dtype)
    packed = vqvae_fast.pack(codebooks)
    found = vqvae_fast.residual_nearest_code(z, packed)
    # For D = 8 the packed codes hold the starts of the scores, which the residual kernel does not
    # read there, so the call packs the books again.
    assert len(packings) == (dim == 8)
    assert same(found, vqvae_fast.residual_nearest_code(z, codebooks))
    assert same(
        vqvae_fast.residual_nearest_code(z[0, 0], packed),
        vqvae_fast.residual_nearest_code(z[0, 0], codebooks),
    )


def test_fewer_stages_than_were_packed(packings, monkeypatch) -> None:
    """The rows of `packed` are no packed form of fewer books: their pieces lie interleaved."""
    monkeypatch.setattr("vqvae_fast.backends.triton.packed_form.crc32", lambda _: 0)
    codebooks = torch.randn(3, 300, 16) * torch.tensor([1.0, 9.0, 81.0])[:, None, None]
    z, packed = torch.randn(40, 16), vqvae_fast.pack(codebooks)
    for stages in (1, 2):
        found = vqvae_fast.residual_nearest_code(z, packed, num_quantizers=stages)
        assert same(found, vqvae_fast.residual_nearest_code(z, codebooks[:stages]))


# ---- What is left alone, and what is refused -----------------------------------------------------


def test_what_is_not_packed(monkeypatch, packings) -> None:
    monkeypatch.setattr(kept_books, "_MOST_BOOKS", 2)
    for codebook in (torch.randn(30, 8).double(), torch.randn(3, 20, 8)):
        packed = vqvae_fast.pack(codebook)
        assert packed.packed.shape == (*codebook.shape[:-2], 0)
        z = codebook[..., :2, :] + 0.1
        assert same(vqvae_fast.nearest_code(z, packed), vqvae_fast.nearest_code(z, codebook))


@pytest.mark.parametrize("missing", [1, 16, "all"])
def test_bytes_of_another_form_are_left_alone(monkeypatch, packings, missing) -> None:
    monkeypatch.setattr(search, "forced_form", "filter")
    z, codebook = torch.randn(40, 16), torch.randn(300, 16)
    packed = torch.ops.vqvae_fast.pack_codebook(codebook)
    packed = packed[: 0 if missing == "all" else len(packed) - missing].fill_(255)
    found = torch.ops.vqvae_fast.quantize_packed(z, codebook, packed)
    assert len(packings) == 1
    assert same(found, torch.ops.vqvae_fast.quantize(z, codebook))


@pytest.mark.parametrize("other", [(290, 16), (299, 16), (300, 15)])
@pytest.mark.parametrize("other_dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_another_codebook_are_left_alone(monkeypatch, other, other_dtype) -> None:
    """All are padded to the same tiles."""
    monkeypatch.setattr(search, "forced_form", "filter")
    packed = torch.ops.vqvae_fast.pack_codebook(torch.randn(300, 16))
    codes, dim = other
    z, codebook = torch.randn(40, dim).to(other_dtype), torch.randn(codes, dim).to(other_dtype)
    found = torch.ops.vqvae_fast.nearest_packed_code(z, codebook, packed)
    assert same(found, torch.ops.vqvae_fast.nearest_code(z, codebook))


def test_bytes_may_begin_anywhere(monkeypatch) -> None:
    monkeypatch.setattr(search, "forced_form", "filter")
    z, codebook = torch.randn(40, 16), torch.randn(300, 16)
    packed = torch.ops.vqvae_fast.pack_codebook(codebook)
    moved = torch.cat([packed.new_zeros(1), packed])[1:]
    found = torch.ops.vqvae_fast.nearest_packed_code(z, codebook, moved)
    assert same(found, torch.ops.vqvae_fast.nearest_code(z, codebook))


def test_books_are_not_taken_for_all_of_another_codebook(monkeypatch) -> None:
    """Not even where the checksums are the same."""
    monkeypatch.setattr("vqvae_fast.backends.triton.packed_form.crc32", lambda _: 0)
    monkeypatch.setattr(search, "forced_form", "filter")
    z, codebook = torch.randn(3, 40, 16), torch.randn(3, 300, 16)
    codebook[1:] *= 1e3
    packed = torch.ops.vqvae_fast.pack_codebook(codebook)
    for some in (slice(0, 1), slice(1, 3)):
        bytes_of_some = packed[some].contiguous()
        assert kept_books.readable_bytes(bytes_of_some, codebook[some]) is None
        found = torch.ops.vqvae_fast.nearest_packed_code(z[some], codebook[some], bytes_of_some)
        assert same(found, torch.ops.vqvae_fast.nearest_code(z[some], codebook[some]))


def test_another_configuration_does_not_read_it(monkeypatch) -> None:
    """As on another device: tiles of other sizes pad the codes in another way."""
    monkeypatch.setattr(search, "forced_form", "filter")
    z, codebook = torch.randn(40, 24), torch.randn(300, 24)
    packed, wanted = vqvae_fast.pack(codebook), vqvae_fast.nearest_code(z, codebook)
    packed.packed.fill_(255)  # read, it would give other codes

    def other(dim, dtype):
        return configuration(dim, dtype)._replace(block_dim=64)

    monkeypatch.setattr("vqvae_fast.backends.triton.packed_form.configuration", other)
    monkeypatch.setattr(search_launches, "configuration", other)
    forget_plans()
    try:
        assert same(vqvae_fast.nearest_code(z, packed), wanted)
    finally:
        forget_plans()


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (lambda packed: packed.view(torch.int8), "packed must be contiguous bytes, got torch.int8"),
        (lambda packed: packed.repeat(2)[::2], "packed must be contiguous bytes"),
        (lambda packed: packed.to("meta"), "packed must be on cpu, got meta"),
    ],
)
@pytest.mark.parametrize("op", ["nearest_packed_code", "quantize_packed"])
def test_what_is_no_packed_form(op: str, spoilt: object, message: str) -> None:
    z, codebook = torch.randn(40, 16), torch.randn(300, 16)
    packed = spoilt(torch.ops.vqvae_fast.pack_codebook(codebook))
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(search, op)(z, codebook, packed)


# ---- What torch does with it ---------------------------------------------------------------------


@pytest.mark.parametrize("form", ["filter", "direct"])
@pytest.mark.parametrize("op", ["nearest_packed_code", "quantize_packed"])
def test_opcheck(monkeypatch, op: str, form: str) -> None:
    monkeypatch.setattr(search, "forced_form", form)
    codebook = torch.randn(300, 16)
    packed = vqvae_fast.pack(codebook).packed
    for shape in [(13, 16), (0, 16)]:
        arguments = (torch.randn(shape), codebook, packed)
        result = torch.library.opcheck(getattr(torch.ops.vqvae_fast, op).default, arguments)
        assert set(result.values()) == {"SUCCESS"}


def test_opcheck_of_residual_stages() -> None:
    codebooks = torch.randn(3, 300, 16)
    arguments = (torch.randn(13, 16), codebooks, vqvae_fast.pack(codebooks).packed)
    op = torch.ops.vqvae_fast.residual_nearest_packed_code.default
    assert set(torch.library.opcheck(op, arguments).values()) == {"SUCCESS"}


def test_compiled(monkeypatch) -> None:
    monkeypatch.setattr(search, "forced_form", "filter")
    packed: vqvae_fast.PackedCodebook = vqvae_fast.pack(torch.randn(300, 16))

    def search_in_it(z: Tensor) -> tuple[Tensor, ...]:
        return (*vqvae_fast.nearest_code(z, packed), vqvae_fast.quantize(z, packed).quantized)

    z = torch.randn(40, 16)
    found = torch.compile(search_in_it, fullgraph=True, backend="aot_eager")(z)
    assert same(found, search_in_it(z))
