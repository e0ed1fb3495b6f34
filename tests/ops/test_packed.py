"""A codebook that is packed beforehand gives the bits of the codebook itself."""

import copy
import io
import multiprocessing
import pickle
import re
import threading

import pytest
import torch
from adversarial import CASES, DOUBLE, FILTERED, HALF, SMALL, Size
from kernels import INSTRUCTION_SETS, compiled, same_bits
from oracle import check
from torch import Tensor

import vqvae_fast
from vqvae_fast import _native, functional

pytestmark = pytest.mark.usefixtures("restore")
needs_kernels = pytest.mark.skipif(not INSTRUCTION_SETS, reason="the C++ extension is not there")
# Off the small tiles of one, two, four and eight rows, and more than a tile, a block and a chunk.
COUNTS = (1, 2, 3, 5, 8, 9, 13, 14, 15, 29, 61, 230)


def check_everywhere(z: Tensor, codebook: Tensor) -> None:
    """The oracle judges the packed search, whose bits are those of the search that packs itself."""
    wanted = vqvae_fast.nearest_code(z, codebook)
    check(wanted, z, codebook)
    for isa in INSTRUCTION_SETS or ["reference"]:
        if INSTRUCTION_SETS:
            compiled(isa)
        packed = vqvae_fast.pack(codebook)
        for count in COUNTS:
            if count > len(z):
                break
            found = vqvae_fast.nearest_code(z[-count:], packed)
            for mine, theirs in zip(found, wanted, strict=True):
                assert same_bits(mine, theirs[-count:]), (isa, count)


@pytest.mark.quick(40)
@pytest.mark.parametrize("size", [SMALL, *FILTERED], ids=str)
@pytest.mark.parametrize(
    ("dtype", "case"),
    [(dtype, case) for dtype in (torch.float32, torch.bfloat16) for case in CASES]
    + [(torch.float16, case) for case in HALF],
    ids=str,
)
def test_named_values(size: Size, dtype: torch.dtype, case: str) -> None:
    cases = HALF if dtype == torch.float16 else CASES
    check_everywhere(*(part.to(dtype) for part in cases[case](size)))


@pytest.mark.quick(4)
@pytest.mark.parametrize("case", CASES)
def test_named_values_in_a_large_book(case: str) -> None:
    """Beyond 1 MiB of codes the filter scores candidates again before it measures them."""
    check_everywhere(*CASES[case](Size(rows=29, codes=4099, dim=67)))


def test_two_near_codes_that_share_a_lane() -> None:
    """Integers cannot tell them apart, and a lane of the filter keeps one score for both."""
    codebook = torch.randn(4099, 67)
    first = torch.arange(61) * 64 + torch.randint(16, (61,))
    second = first + 16 * torch.randint(1, 4, (61,))
    step = (codebook[second] - codebook[first]) / 2
    z = codebook[first] + step * (1 + 1e-4 * torch.where(torch.rand(61) < 0.5, -1, 1))[:, None]
    check_everywhere(z, codebook)


@pytest.mark.quick(6)
@pytest.mark.parametrize("case", [*CASES, *DOUBLE])
def test_named_values_in_float64(case: str) -> None:
    check_everywhere(*{**CASES, **DOUBLE}[case](SMALL))


@pytest.mark.parametrize("offset", [0, 1000])
def test_integers_tie_in_masses(offset: int) -> None:
    size = FILTERED[0]
    z = torch.randint(-2, 3, (size.rows, size.dim)).float() + offset
    codebook = torch.randint(-2, 3, (size.codes, size.dim)).float() + offset
    z[::2, 3:], codebook[:, 3:] = offset, offset  # three dimensions: many codes are copies
    check_everywhere(z, codebook)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_bad_rows_and_bad_codes(value: float, share: float) -> None:
    size = FILTERED[0]
    z, codebook = size.z().float(), size.book().float()
    z[::7, 3] = value
    codebook[torch.rand(size.codes) < share, 5] = value
    wanted = vqvae_fast.nearest_code(z, codebook)
    for isa in INSTRUCTION_SETS or ["reference"]:
        if INSTRUCTION_SETS:
            compiled(isa)
        found = vqvae_fast.nearest_code(z, vqvae_fast.pack(codebook))
        assert all(same_bits(*pair) for pair in zip(found, wanted, strict=True)), isa


@needs_kernels
@pytest.mark.parametrize("count", COUNTS)
def test_the_filter_settles_few_rows(count: int) -> None:
    """Otherwise the tests above would compare the float search with itself."""
    z, codebook = torch.randn(count, 64), torch.randn(1031, 64)
    for isa in INSTRUCTION_SETS:
        compiled(isa)
        packed = vqvae_fast.pack(codebook).packed
        settled = _native.extension.rows_settled_by_filter(z, codebook, packed)
        assert settled is None if isa != "avx512vnni" else settled >= 0.9 * count


@needs_kernels
@pytest.mark.parametrize("spoiled", ["a far code", "copies"])
def test_a_codebook_that_integers_do_not_serve_is_packed_in_floats(spoiled: str) -> None:
    z, codebook = torch.randn(61, 64), torch.randn(1031, 64)
    if spoiled == "copies":
        codebook[:] = codebook[torch.arange(1031) % 8]
    else:
        codebook[7] = 1e4
    check_everywhere(z, codebook)
    for isa in INSTRUCTION_SETS:
        compiled(isa)
        packed = vqvae_fast.pack(codebook).packed
        assert _native.extension.rows_settled_by_filter(z, codebook, packed) is None


def trained_like(rows: int, dim: int) -> Tensor:
    """Vectors that spread far along a few directions, of which the filter makes 16 bits."""
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(1))).Q
    return torch.randn(rows, dim) * torch.logspace(1, -1, dim) @ turn


@needs_kernels
def test_wide_directions_serve_few_rows() -> None:
    z, codebook = trained_like(61, 64), trained_like(1031, 64)
    check_everywhere(z, codebook)
    if "avx512vnni" in INSTRUCTION_SETS:
        compiled("avx512vnni")
        packed = vqvae_fast.pack(codebook).packed
        assert _native.extension.rows_settled_by_filter(z[:13], codebook, packed) >= 12


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("count", [1, 13, 50])
def test_threads_and_layouts_leave_no_trace(threads: int, count: int) -> None:
    torch.set_num_threads(threads)
    codebook = torch.randn(64, 1031).T
    packed = vqvae_fast.pack(codebook)
    z = torch.randn(64, 2 * count).T[::2]
    wanted = vqvae_fast.nearest_code(z.contiguous(), codebook.contiguous())
    found = vqvae_fast.nearest_code(z, packed)
    assert all(same_bits(*pair) for pair in zip(found, wanted, strict=True))


@needs_kernels
@pytest.mark.parametrize("count", [1, 13, 50])
def test_threads_divide_the_codes_of_a_large_book(count: int) -> None:
    """Three threads have two tiles of rows at most, and the book has 2 MiB in integers."""
    codebook = torch.randn(8203, 256)
    codebook[-1], codebook[4000:4003] = codebook[5], codebook[6]  # equal codes in several parts
    codebook[77] = float("nan")
    z = torch.randn(count, 256)
    z[0], z[count // 2] = codebook[-1], codebook[6]
    z[-1, 3] = float("inf") if count > 1 else z[-1, 3]
    torch.set_num_threads(1)
    wanted = vqvae_fast.quantize(z, codebook)
    for isa in INSTRUCTION_SETS:
        compiled(isa)
        packed = vqvae_fast.pack(codebook)
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found = vqvae_fast.quantize(z, packed)
            assert all(same_bits(*pair) for pair in zip(found, wanted, strict=True)), (isa, threads)


@pytest.mark.parametrize("count", [0, 1, 9, 61])
def test_several_books_in_one_object(count: int, dtype: torch.dtype) -> None:
    codebook = torch.randn(3, 300, 16).to(dtype)
    codebook[1] *= 1e-30 if dtype in (torch.float32, torch.float64) else 1  # of another form
    codebook[2] = float("nan")
    z = torch.randn(3, count, 16).to(dtype)
    packed = vqvae_fast.pack(codebook)
    assert packed.shape == codebook.shape
    for function in (vqvae_fast.nearest_code, vqvae_fast.quantize):
        found, wanted = function(z, packed), function(z, codebook)
        assert all(same_bits(*pair) for pair in zip(found, wanted, strict=True))


def test_quantize_has_the_values_and_the_gradient_to_z(dtype: torch.dtype) -> None:
    codebook, packed = (lambda c: (c, vqvae_fast.pack(c)))(torch.randn(300, 12).to(dtype))
    results = []
    for book in (codebook, packed):
        z = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(3)).to(dtype)
        z.requires_grad_()
        found = vqvae_fast.quantize(z, book, channel_first=True, commitment_weight=0.7)
        (found.loss + (found.quantized * torch.arange(5)).sum()).backward()
        results.append([*(part.detach() for part in found), z.grad])
    assert all(same_bits(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("num_quantizers", [None, 1, 3, 5])
@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 9, 7), (0, 7)])
def test_residual_stages(shape: tuple, num_quantizers: int | None, dtype: torch.dtype) -> None:
    codebooks = torch.randn(5, 300, 7).to(dtype) * 0.7 ** torch.arange(5)[:, None, None]
    codebooks = codebooks.to(dtype)
    z = torch.randn(shape).to(dtype)
    found = vqvae_fast.residual_nearest_code(
        z, vqvae_fast.pack(codebooks), num_quantizers=num_quantizers
    )
    wanted = vqvae_fast.residual_nearest_code(z, codebooks[:num_quantizers])
    assert found.indices.shape == (*shape[:-1], num_quantizers or 5)
    assert all(same_bits(*pair) for pair in zip(found, wanted, strict=True))
    plain = vqvae_fast.residual_nearest_code(z, codebooks, num_quantizers=num_quantizers)
    assert all(same_bits(*pair) for pair in zip(plain, wanted, strict=True))


# ---- What a packed codebook is -------------------------------------------------------------------


def test_it_is_a_copy() -> None:
    codebook, z = torch.randn(300, 16), torch.randn(13, 16)
    packed, wanted = vqvae_fast.pack(codebook), vqvae_fast.nearest_code(z, codebook)
    codebook.zero_()
    assert torch.equal(vqvae_fast.nearest_code(z, packed).indices, wanted.indices)


def test_it_says_its_memory() -> None:
    codebook = torch.randn(2048, 256)
    packed = vqvae_fast.pack(codebook)
    assert packed.nbytes == packed.codebook.nbytes + packed.packed.nbytes
    assert packed.nbytes < 2.1 * codebook.nbytes
    if "avx512vnni" in INSTRUCTION_SETS:
        assert packed.nbytes < 1.3 * codebook.nbytes
    assert str(packed.nbytes) in repr(packed)
    assert (packed.shape, packed.dtype, packed.device, len(packed)) == (
        codebook.shape,
        codebook.dtype,
        codebook.device,
        2048,
    )


def test_codes_that_are_written_to_are_refused() -> None:
    packed, z = vqvae_fast.pack(torch.randn(300, 16)), torch.randn(2, 16)
    packed.codebook[0] = 1
    for function in (vqvae_fast.nearest_code, vqvae_fast.quantize):
        with pytest.raises(RuntimeError, match="were changed in place"):
            function(z, packed)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickle.dumps])
def test_codes_that_are_written_to_are_not_copied(again: object) -> None:
    packed = vqvae_fast.pack(torch.randn(300, 16))
    packed.codebook[0] = 1
    with pytest.raises(RuntimeError, match="were changed in place"):
        again(packed)


@needs_kernels
def test_another_instruction_set_does_not_read_it() -> None:
    z, codebook = torch.randn(13, 16), torch.randn(300, 16)
    wanted = vqvae_fast.nearest_code(z, codebook)
    for isa in INSTRUCTION_SETS:
        compiled(isa)
        packed = vqvae_fast.pack(codebook)
        for other in INSTRUCTION_SETS:
            compiled(other)
            found = vqvae_fast.nearest_code(z, packed)
            assert all(same_bits(*pair) for pair in zip(found, wanted, strict=True))


@needs_kernels
def test_bytes_of_another_codebook_are_refused() -> None:
    z, codebook = torch.randn(13, 16), torch.randn(300, 16)
    packed = vqvae_fast.pack(codebook).packed
    search = torch.ops.vqvae_fast.nearest_packed_code
    with pytest.raises(ValueError, match=r"expected \[K, D\] = \[299, 16\], got \[300, 16\]"):
        search(z, codebook[:299], packed)
    with pytest.raises(ValueError, match="another dtype"):
        search(z.double(), codebook.double(), packed)
    with pytest.raises(ValueError, match="its size is wrong"):
        search(z, codebook, packed[:-64])
    with pytest.raises(ValueError, match="too short"):
        search(z, codebook, packed[:8])
    with pytest.raises(ValueError, match="another layout"):
        search(z, codebook, torch.zeros_like(packed))
    with pytest.raises(ValueError, match="packed must be contiguous bytes"):
        search(z, codebook, packed[None])


# ---- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codebook", "error", "message"),
    [
        ([1.0], TypeError, "codebook must be a torch.Tensor, got list"),
        (torch.zeros(5, 8, dtype=torch.int64), TypeError, "got torch.int64"),
        (torch.zeros(8), ValueError, "codebook must be [K, D] or [H, K, D]"),
        (torch.zeros(0, 8), ValueError, "with at least one code and one dimension, got [0, 8]"),
        (torch.zeros(5, 8).requires_grad_(), ValueError, "codebook requires a gradient"),
    ],
    ids=str,
)
def test_what_cannot_be_packed(codebook: object, error: type, message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        vqvae_fast.pack(codebook)


def test_parameters_can_be_packed_without_a_gradient() -> None:
    weight = torch.nn.Parameter(torch.randn(5, 8))
    with torch.no_grad():
        packed = vqvae_fast.pack(weight)
    assert not packed.codebook.requires_grad
    assert torch.equal(vqvae_fast.nearest_code(weight, packed).indices, torch.arange(5))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda f, z, p: f(z.double(), p),
            TypeError,
            "the packed codebook must have z's dtype torch.float64, got torch.float32: pack",
        ),
        (lambda f, z, p: f(z[:, :7], p), ValueError, "must be ["),
        (
            lambda f, z, p: f(z.to("meta"), p),
            ValueError,
            "the packed codebook must be on z's device meta, got cpu",
        ),
        (lambda f, z, p: f(z.tolist(), p), TypeError, "z must be a torch.Tensor, got list"),
        (lambda f, z, p: f(z.long(), p), TypeError, "z must be one of"),
    ],
)
@pytest.mark.parametrize(
    "function", [vqvae_fast.nearest_code, vqvae_fast.quantize, vqvae_fast.residual_nearest_code]
)
def test_calls_that_do_not_fit(function: object, call: object, error: type, message: str) -> None:
    packed = vqvae_fast.pack(
        torch.randn(4, 8) if "residual" not in str(function) else torch.randn(2, 4, 8)
    )
    with pytest.raises(error, match=re.escape(message)):
        call(function, torch.randn(3, 8), packed)


def test_what_a_packed_codebook_does_not_serve() -> None:
    z, packed = torch.randn(3, 8), vqvae_fast.pack(torch.randn(4, 8))
    with pytest.raises(ValueError, match=r"'cosine': pass packed.codebook in its place, or pack"):
        vqvae_fast.nearest_code(z, packed, metric="cosine")
    with pytest.raises(ValueError, match=r"got 'dot' and None: pass packed.codebook in its place"):
        vqvae_fast.nearest_code(z, packed, metric="dot")
    with pytest.raises(ValueError, match="metric must be one of euclidean, cosine, dot, got 'cos'"):
        vqvae_fast.nearest_code(z, packed, metric="cos")
    with pytest.raises(ValueError, match="serves metric='euclidean' and backend=None"):
        vqvae_fast.nearest_code(z, packed, backend="reference")
    with pytest.raises(ValueError, match="sparse=True asks for a gradient of the codes"):
        vqvae_fast.quantize(z, packed, sparse=True)
    for number, error in [(0, ValueError), (3, ValueError), (1.5, TypeError)]:
        with pytest.raises(error, match="num_quantizers must be"):
            vqvae_fast.residual_nearest_code(
                z, vqvae_fast.pack(torch.randn(2, 4, 8)), num_quantizers=number
            )


# ---- What torch and Python do with it ------------------------------------------------------------


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))]
)
def test_copies(again: object) -> None:
    z, packed = torch.randn(13, 16), vqvae_fast.pack(torch.randn(2, 300, 16))
    other = again(packed)
    assert other.codebook.data_ptr() != packed.codebook.data_ptr()
    assert same_bits(other.packed, packed.packed)
    for mine, theirs in zip(
        vqvae_fast.residual_nearest_code(z, other),
        vqvae_fast.residual_nearest_code(z, packed),
        strict=True,
    ):
        assert same_bits(mine, theirs)


@pytest.mark.parametrize("weights_only", [True, False])
def test_files_of_torch(weights_only: bool) -> None:
    z, packed, file = torch.randn(13, 16), vqvae_fast.pack(torch.randn(300, 16)), io.BytesIO()
    torch.save({"book": packed}, file)
    file.seek(0)
    other = torch.load(file, weights_only=weights_only)["book"]
    assert same_bits(other.packed, packed.packed)
    assert torch.equal(
        vqvae_fast.nearest_code(z, other).indices, vqvae_fast.nearest_code(z, packed).indices
    )


@pytest.mark.parametrize("books", [(), (2,)])
def test_statistics_take_its_shape(books: tuple) -> None:
    codebook, z = torch.randn(*books, 30, 4), torch.randn(*books, 13, 4)
    packed = vqvae_fast.pack(codebook)
    indices = vqvae_fast.nearest_code(z, packed).indices
    found = functional.code_statistics(z, indices, packed)
    wanted = functional.code_statistics(z, indices, codebook)
    assert all(same_bits(*pair) for pair in zip(found, wanted, strict=True))
    with pytest.raises(TypeError, match=r"codebook must be a torch.Tensor, got list"):
        functional.code_statistics(z, indices, codebook.tolist())


def test_unit_vectors_serve_the_cosine() -> None:
    """What the message of a search by cosine proposes."""
    codebook, z = torch.randn(300, 16), torch.randn(50, 16)
    unit, rows = (torch.nn.functional.normalize(part, dim=-1) for part in (codebook, z))
    found = vqvae_fast.nearest_code(rows, vqvae_fast.pack(unit))
    wanted = vqvae_fast.nearest_code(z, codebook, metric="cosine")
    assert torch.equal(found.indices, wanted.indices)
    torch.testing.assert_close(found.distances / 2, wanted.distances)


def test_inference_mode() -> None:
    z, codebook = torch.randn(3, 8), torch.randn(5, 8)
    with torch.inference_mode():
        packed = vqvae_fast.pack(codebook.clone())
        inside = vqvae_fast.nearest_code(z, packed)
    outside = vqvae_fast.quantize(z.requires_grad_(), packed)
    outside.quantized.sum().backward()
    assert torch.equal(inside.indices, outside.indices)


def test_autocast_takes_codes_in_float32() -> None:
    z, codebook = torch.randn(13, 16), torch.randn(300, 16).bfloat16()
    packed = vqvae_fast.pack(codebook)
    with torch.autocast("cpu"):
        found, wanted = (vqvae_fast.quantize(z, book) for book in (packed, codebook))
    assert found.quantized.dtype == torch.float32
    assert all(same_bits(*pair) for pair in zip(found, wanted, strict=True))


class Codec(torch.nn.Module):
    """A module that has packed codebooks, as one that encodes only would."""

    def __init__(self) -> None:
        super().__init__()
        self.one = vqvae_fast.pack(torch.randn(300, 16))
        self.stages = vqvae_fast.pack(torch.randn(3, 300, 16))

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        return (
            *vqvae_fast.nearest_code(z, self.one),
            *vqvae_fast.quantize(z, self.one),
            *vqvae_fast.residual_nearest_code(z, self.stages, num_quantizers=2),
        )


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic: bool) -> None:
    module = Codec()
    compiled_module = torch.compile(module, fullgraph=True, dynamic=dynamic)
    for count in (1, 13, 50):
        z = torch.randn(count, 16)
        for mine, theirs in zip(compiled_module(z), module(z), strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("strict", [False, True])
def test_exported(strict: bool) -> None:
    module = Codec()
    with torch.no_grad():
        program = torch.export.export(module, (torch.randn(13, 16),), strict=strict).module()
    z = torch.randn(13, 16)
    for mine, theirs in zip(program(z), module(z), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_packing_is_not_traced() -> None:
    traced = torch.compile(lambda c: vqvae_fast.pack(c).codebook, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="cannot be traced"):
        traced(torch.randn(5, 8))


@pytest.mark.parametrize(
    "op", ["nearest_packed_code", "quantize_packed", "residual_nearest_packed_code"]
)
def test_opcheck(op: str, dtype: torch.dtype) -> None:
    codebook = torch.randn(3, 300, 16).to(dtype)
    if "residual" not in op:
        codebook = codebook[0]
    packed = vqvae_fast.pack(codebook).packed
    for shape in [(13, 16), (2, 5, 16), (0, 16)]:
        arguments = (torch.randn(shape).to(dtype), codebook, packed)
        result = torch.library.opcheck(getattr(torch.ops.vqvae_fast, op).default, arguments)
        assert set(result.values()) == {"SUCCESS"}


def test_several_threads_at_once() -> None:
    z, codebook = torch.randn(8, 13, 16), torch.randn(300, 16)
    packed = vqvae_fast.pack(codebook)
    wanted = [vqvae_fast.nearest_code(part, codebook) for part in z]
    wrong = []

    def search(place: int) -> None:
        for _ in range(200):
            found = vqvae_fast.nearest_code(z[place], packed)
            if not all(same_bits(*pair) for pair in zip(found, wanted[place], strict=True)):
                wrong.append(place)

    threads = [threading.Thread(target=search, args=(place,)) for place in range(len(z))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_process_has_it() -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    z, packed = torch.randn(13, 16), vqvae_fast.pack(torch.randn(300, 16))
    wanted = vqvae_fast.nearest_code(z, packed).indices.tolist()
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(
        target=lambda: results.put(vqvae_fast.nearest_code(z, packed).indices.tolist())
    )
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert results.get() == wanted
