"""Compiles every Triton kernel in every configuration that a call can choose, by such calls."""

import importlib
import importlib.util
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget

from benchmarks.gpu_check.offline import Launch, Specialization, compiled_for
from vqvae_fast.backends.triton import ops as kernels
from vqvae_fast.backends.triton import search
from vqvae_fast.backends.triton.configurations import block_dims, residual_dims
from vqvae_fast.backends.triton.forms import Form, direct_dims
from vqvae_fast.backends.triton.scan import TILES_PER_PART

ROWS, CODES, STAGES = 500, 1024, 8
# This many codes exceed the tile numbers of one span.
SPANS = TILES_PER_PART.value * 128 * 8
SHORT_TYPES = (torch.bfloat16, torch.float16)


class Case(NamedTuple):
    """A call whose launches are compiled; dim is D."""

    name: str
    dim: int
    dtype: torch.dtype
    call: Callable[[], object]


def every_case() -> Iterator[Case]:
    """Yield all calls of this package's kernels."""
    yield from cases()
    yield from direct_cases()
    yield from residual_cases()
    yield from shape_cases()
    yield from sum_cases()
    yield from cases(torch.float32)


def cases(packed: torch.dtype = torch.float16) -> Iterator[Case]:
    """Yield the searches; those that multiply scores as float32 are called plain.

    Input types differ only in their loads, so each configuration gets one type, and the smallest
    gets all. Rows of 8 elements leave columns for half_norm.
    """
    is_plain = packed == torch.float32
    name = "plain" if is_plain else "search"
    dims = block_dims(packed)
    for dim in (8, *dims, 2 * max(dims)):
        # At D = 64 the bar for the scan is set in bfloat16, that for settle in float32.
        dtypes = [torch.float32, torch.bfloat16] if dim == 64 and not is_plain else [torch.float32]
        if dim == min(dims):
            dtypes += [torch.bfloat16, torch.float16]
        for dtype in dtypes:
            z, codebook = torch.zeros(ROWS, dim, dtype=dtype), torch.zeros(CODES, dim, dtype=dtype)
            yield Case(name, dim, dtype, _search(z, codebook, packed))
    z, codebook = torch.zeros(ROWS, 64), torch.zeros(1, 64).expand(SPANS, 64)
    yield Case(f"{name}, large K", 64, torch.float32, _search(z, codebook, packed))
    z, codebook = torch.zeros(ROWS, 64).double(), torch.zeros(CODES, 64).double()
    yield Case(name, 64, torch.float64, _search(z, codebook, packed))


def shape_cases() -> Iterator[Case]:
    """Yield rows off the blocks' sizes, feature maps, books: their loads have masks and strides."""
    odd = (
        (1, torch.float32),
        (17, torch.float32),
        (100, torch.bfloat16),
        (200, torch.float32),
        (1000, torch.float32),
    )
    for dim, dtype in odd:
        z, codebook = torch.zeros(ROWS, dim, dtype=dtype), torch.zeros(CODES, dim, dtype=dtype)
        yield Case("search, odd D", dim, dtype, _search(z, codebook, torch.float16))
    for dim in (64, 256, 512):
        z, codebook = _maps(dim), torch.zeros(CODES, dim)
        yield Case("search, maps", dim, torch.float32, _search(z, codebook, torch.float16))
    for dtype in (torch.float32, torch.float16):
        z, codebook = (torch.zeros(3, n, 24, dtype=dtype) for n in (ROWS, CODES))
        yield Case("search, books", 24, dtype, _search(z, codebook, torch.float16))
    for dtype in (torch.float32, torch.float64):
        z, codebook = torch.zeros(ROWS, 64, dtype=dtype), torch.zeros(CODES, 64, dtype=dtype)
        call = _search(z, codebook, torch.float16, gathers=False)
        yield Case("search, no gather", 64, dtype, call)
    for dim in (1, 17, 128):
        call = _residual(_maps(dim), torch.zeros(STAGES, CODES, dim))
        yield Case("residual, maps", dim, torch.float32, call)


def _maps(dim: int) -> Tensor:
    return torch.zeros(3, dim, 7, 11).movedim(1, -1)


def sum_cases() -> Iterator[Case]:
    """Yield segment sums and backward passes: types, widths, rows and feature maps, many codes."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for dim in (4, 16, 32, 64, 256):
            codebook = torch.zeros(CODES, dim, dtype=dtype)
            rows = torch.zeros(ROWS, dim, dtype=dtype)
            maps = torch.zeros(3, dim, 7, 11, dtype=dtype).movedim(1, -1)
            odd = torch.zeros(ROWS, dim + 1, dtype=dtype)[:, :dim]
            for layout, z in (("rows", rows), ("odd rows", odd), ("maps", maps)):
                yield Case(f"sums, {layout}", dim, dtype, _sums(z, codebook))
    src, indices = torch.zeros(ROWS, 64), torch.zeros(ROWS, dtype=torch.int64)

    def call() -> object:
        return kernels.segment_sum(src, indices, 100_000)

    yield Case("sums, large K", 64, torch.float32, call)


def _sums(z: Tensor, codebook: Tensor) -> Callable[[], object]:
    indices = torch.zeros(z.shape[:-1], dtype=torch.int64)

    def call() -> None:
        kernels.segment_sum(z, indices, len(codebook))
        grad_loss = torch.zeros((), dtype=torch.promote_types(z.dtype, torch.float32))
        kernels.quantize_backward(z, grad_loss, z, codebook, indices, 0.25, 1.0)

    return call


def residual_cases() -> Iterator[Case]:
    """Yield residual VQ with all stages in one launch."""
    # A cover of all values (scopes.py) is small where a type and a width occur together.
    kinds = [(dim, torch.float32) for dim in residual_dims()]
    for dim, dtype in [*kinds, *((dim, d) for dim in (32, 64) for d in SHORT_TYPES)]:
        z, codebooks = torch.zeros(ROWS, dim), torch.zeros(STAGES, CODES, dim)
        yield Case("residual", dim, dtype, _residual(z.to(dtype), codebooks.to(dtype)))


def _residual(z: Tensor, codebooks: Tensor) -> Callable[[], object]:
    return lambda: kernels.residual_nearest_code(z, codebooks)


def _search(
    z: Tensor, codebook: Tensor, packed: torch.dtype, form: Form = "filter", gathers: bool = True
) -> Callable[[], object]:
    run = kernels.quantize if gathers else kernels.nearest_code

    def call() -> None:
        with mock.patch.object(search, "forced_form", form):
            run(z, codebook, packed_dtype=packed)

    return call


def direct_cases() -> Iterator[Case]:
    """Yield searches in one launch: types, widths, rows off the blocks, maps, shared codes."""
    # A cover of all values (scopes.py) is small where a type and a width occur together.
    kinds = [(dim, torch.float32) for dim in (*direct_dims(), 8, 17, 100)]
    for dim, dtype in [*kinds, *((dim, d) for dim in (8, 17, 64) for d in SHORT_TYPES)]:
        z, codebook = torch.zeros(ROWS, dim, dtype=dtype), torch.zeros(CODES, dim, dtype=dtype)
        call = _search(z, codebook, torch.float16, "direct")
        yield Case("direct", dim, dtype, call)
    z, codebook = torch.zeros(ROWS, 64), torch.zeros(CODES, 64)
    call = _search(z, codebook, torch.float16, "direct", gathers=False)
    yield Case("direct, no gather", 64, torch.float32, call)
    call = _search(_maps(64), torch.zeros(CODES, 64), torch.float16, "direct")
    yield Case("direct, maps", 64, torch.float32, call)
    for dim in (64, 128):
        call = _search(
            torch.zeros(2, dim), torch.zeros(1, dim).expand(SPANS, dim), torch.float16, "direct"
        )
        yield Case("direct, shared", dim, torch.float32, call)


def peer_cases() -> Iterator[Case]:
    """Yield the assignment kernel of flash-kmeans, as it configures itself on an H100."""
    if importlib.util.find_spec("flash_kmeans") is None:
        return
    peer = importlib.import_module("flash_kmeans.assign_euclid_triton")
    for dim in (64, 128, 256):
        x, c = (torch.zeros(1, n, dim, dtype=torch.bfloat16) for n in (65536, 8192))
        x_sq, c_sq = x[..., 0].float(), c[..., 0].float()
        out = torch.zeros(1, 65536, dtype=torch.int32)
        config = peer._heuristic_euclid_config_h100_smallD(65536, 8192, dim, x.dtype)

        def call(x=x, c=c, x_sq=x_sq, c_sq=c_sq, out=out, dim=dim, config=config) -> None:
            strides = [s for t in (x, c, x_sq, c_sq, out) for s in t.stride()]
            arguments = (x, c, x_sq, c_sq, out, 1, 65536, 8192, dim, *strides)
            peer._euclid_assign_kernel[(1,)](*arguments, D_PAD=dim, **config)

        yield Case("flash-kmeans", dim, torch.bfloat16, call)


def compile_case(
    case: Case, target: GPUTarget, wanted: Collection[Specialization] | None = None
) -> list[Launch]:
    """Return the kernels that the case launches, compiled for a target; None wants all of them."""
    with compiled_for(target, wanted) as launches:
        case.call()
    return launches
