"""What a packed codebook is, what it refuses, and what torch and Python do with it."""

import copy
import io
import multiprocessing
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from kernels import FILTERING, INSTRUCTION_SETS, REFUSED, compiled, same_bits
from torch import Tensor

import vqvae_fast
from vqvae_fast import functional

pytestmark = pytest.mark.usefixtures("restore")
needs_kernels = pytest.mark.skipif(not INSTRUCTION_SETS, reason="the C++ extension is not there")


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
    if INSTRUCTION_SETS and INSTRUCTION_SETS[0] in FILTERING:
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
    with pytest.raises(REFUSED, match=r"expected \[K, D\] = \[299, 16\], got \[300, 16\]"):
        search(z, codebook[:299], packed)
    with pytest.raises(REFUSED, match="another dtype"):
        search(z.double(), codebook.double(), packed)
    with pytest.raises(REFUSED, match="its size is wrong"):
        search(z, codebook, packed[:-64])
    with pytest.raises(REFUSED, match="too short"):
        search(z, codebook, packed[:8])
    with pytest.raises(REFUSED, match="another layout"):
        search(z, codebook, torch.zeros_like(packed))
    with pytest.raises(REFUSED, match="packed must be contiguous bytes"):
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

    def is_right(place: int) -> bool:
        found = [vqvae_fast.nearest_code(z[place], packed) for _ in range(200)]
        return all(
            same_bits(*pair) for one in found for pair in zip(one, wanted[place], strict=True)
        )

    with ThreadPoolExecutor(len(z)) as pool:
        assert all(pool.map(is_right, range(len(z))))


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
